"""What a model needs beside its weights, and is kept with them: the folder of a tokenizer that is not CLIP's own."""

from __future__ import annotations

import filecmp
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionzoo.weights.hub import CARRIED_FOLDERS

#: option of a builder that may name a folder -> (module, function) that copies what belongs to it
_COPIERS = {"tokenizer": ("visionzoo.models.clip.tokenizer", "copy_tokenizer")}
assert set(_COPIERS) == set(CARRIED_FOLDERS)


def carry(options: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Copy what ``options`` name into ``folder``, and name it by the copy: what moves the folder moves all of it.

    Args:
        options: of a builder, JSON types. What is no folder, or has gone, stays as it is.
        folder: where weights lie, or will.

    Raises:
        OSError: for a full disk or a folder that cannot be written.
    """
    found = dict(options)
    for option, (module, function) in _COPIERS.items():
        source = found.get(option)
        if isinstance(source, str) and getattr(importlib.import_module(module), function)(source, Path(folder, option)):
            found[option] = option
    return found


def placed(options: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """The inverse of :func:`carry`: options that name a copy beside the weights name it where it is."""
    return {k: str(Path(folder, k)) if k in _COPIERS and v == k else v for k, v in options.items()}


def alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether options differ in nothing but where the same copies lie."""
    differing = {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    return differing <= _COPIERS.keys() and all(_same_files(a.get(k), b.get(k)) for k in differing)


def _same_files(a: Any, b: Any) -> bool:
    if not all(isinstance(path, str) and Path(path).is_dir() for path in (a, b)):
        return False
    names = [sorted(p.name for p in Path(path).iterdir()) for path in (a, b)]
    return names[0] == names[1] and not filecmp.cmpfiles(a, b, names[0], shallow=False)[1]


def copies_in(folder: str | Path) -> dict[str, str]:
    """Options for what was copied into ``folder``."""
    return {option: str(path) for option in _COPIERS if (path := Path(folder, option)).is_dir()}
