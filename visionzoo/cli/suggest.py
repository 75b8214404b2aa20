"""What the user may have meant: one rule for commands, options and names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UsageError(ValueError):
    """The command line or a configuration file is wrong. The message is one line for the user."""


def suggestion(word: str, known: Iterable[str], *, count: int = 1, otherwise: str = "") -> str:
    """``did you mean A or B?`` with the nearest of ``known``; ``otherwise`` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=count, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def spelled(args: Sequence[str], options: Iterable[str]) -> list[str]:
    """Arguments with their options as they are defined: ``-`` and ``_`` are the same.

    Args:
        args: of a command; what follows ``--`` is left alone.
        options: every option that there is, such as ``--image-size``.

    Raises:
        UsageError: for an option that there is not.
    """
    known = {option.replace("_", "-"): option for option in options}
    found = list(args)
    for i, arg in enumerate(found):
        if arg == "--":
            break
        name, equals, value = arg.partition("=")
        if name.startswith("--"):
            right = known.get(name.replace("_", "-"))
            if right is None:
                hint = suggestion(name, known.values(), otherwise="--help lists the options")
                raise UsageError(f"unknown option {name}; {hint}")
            found[i] = right + equals + value
    return found
