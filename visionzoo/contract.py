"""What other people's classes must have, checked before anything is computed with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def missing_parts(thing: Any, base: type, parts: Mapping[str, str]) -> list[str]:
    """``"name (what it is for)"`` for each part that ``thing`` lacks.

    Args:
        thing: an object whose class should inherit from ``base``.
        base: a method that is still its own has not been written.
        parts: names of attributes and methods, with what each is for.
    """
    found = []
    for name, what in parts.items():
        theirs, ours = getattr(type(thing), name, None), getattr(base, name, None)
        if not hasattr(thing, name) or (callable(ours) and theirs is ours):
            found.append(f"{name} ({what})")
    return found


def refuse_missing(what: str, missing: Iterable[str], page: str) -> None:
    """Raise ValueError with all that is missing, if anything is.

    Args:
        what: who lacks it, such as ``"the task Count"``.
        missing: what :func:`missing_parts` found.
        page: the page that explains it.
    """
    if listed := "; ".join(missing):
        raise ValueError(f"{what} lacks {listed}. {page} says more")
