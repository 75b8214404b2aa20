"""What classes are called in words: a text tower reads ``golden retriever``, and knows nothing of ``n02099601``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache

#: A noun of WordNet, as ImageNet's folders are called.
WNID = re.compile(r"n\d{8}")


def plain_name(name: str) -> str:
    """A class name as it is said: ``golden_retriever`` is a golden retriever."""
    return " ".join(name.replace("_", " ").split())


def readable_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of classes in words, as many and in the same order.

    ImageNet's codes get the names that published zero-shot numbers are made with (open_clip's ``IMAGENET_CLASSNAMES``),
    and beyond its thousand classes the first of WordNet's own (timm's ``ImageNetInfo``). Two pairs of classes have one
    name there, ``missile`` and ``sunglasses``; these four have WordNet's as well, so that labels differ. A code that
    neither knows stays, with a warning.
    """
    if not any(map(WNID.fullmatch, names)):
        return tuple(map(plain_name, names))
    known = [(_published().get(n) or _wordnet().get(n)) if WNID.fullmatch(n) else plain_name(n) for n in names]
    unknown = [name for name, said in zip(names, known, strict=True) if said is None]
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        warnings.warn(
            f"{shown}: codes of WordNet whose names are not known here, and which no text tower knows; give words",
            stacklevel=2,
        )
    return tuple(name if said is None else said for name, said in zip(names, known, strict=True))


@cache
def _published() -> Mapping[str, str]:
    """Code -> name of ImageNet's thousand classes."""
    from open_clip import IMAGENET_CLASSNAMES

    own = _described("imagenet-1k")
    names = zip(own, IMAGENET_CLASSNAMES, strict=True)
    return {code: name if IMAGENET_CLASSNAMES.count(name) == 1 else own[code] for code, name in names}


@cache
def _wordnet() -> Mapping[str, str]:
    """Code -> name of ImageNet's nearly 22,000 classes."""
    return _described("imagenet-22k")


def _described(subset: str) -> dict[str, str]:
    """Code -> the first word that WordNet has for it, in the order of the classes."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    descriptions = info.label_descriptions()
    assert isinstance(descriptions, list)
    return {code: text.partition(",")[0] for code, text in zip(info.label_names(), descriptions, strict=True)}
