"""What the names of files and folders say."""

from __future__ import annotations

import os

from visionzoo.files import similar_names

#: Names people give to a split. A file belongs to a split if its name starts with one of them.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def must_exist(path: str) -> None:
    """Raises FileNotFoundError for a missing path; the message suggests near names."""
    if os.path.exists(path):
        return
    parent, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    near = similar_names(name, os.listdir(parent))
    hint = (
        f"did you mean {' or '.join(os.path.join(parent, n) for n in near)}?" if near else f"{parent} has no {name!r}"
    )
    raise FileNotFoundError(f"no such file or folder: {path}; {hint} (built-in sets: digits, shapes)")


def split_of(name: str) -> str | None:
    """The split that a file name or a value of a split column belongs to."""
    stem = name.lower().split(".")[0]
    words = stem.replace("_", "-").split("-")
    return next((split for split, names in SPLIT_NAMES.items() if words[0] in names), None)


def by_split(folder: str, files: list[str]) -> dict[str, list[str]]:
    """Group files of ``folder`` by the split that their names say; all are ``train`` if no name says one.

    Raises:
        ValueError: if some names say a split and others do not.
    """
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(split_of(os.path.basename(file)) or "", []).append(file)
    other = groups.pop("", [])
    if other and groups:
        names = ", ".join(os.path.basename(f) for f in other[:5])
        raise ValueError(
            f"{folder}: cannot tell which split {names} belongs to; file names start with train, val or test"
        )
    return groups or {"train": other}


def split_folders(path: str) -> dict[str, str]:
    """Folders below ``path`` that are named after splits, by split."""
    present = {entry.name.lower(): entry.path for entry in os.scandir(path) if entry.is_dir()}
    return {split: present[name] for split, names in SPLIT_NAMES.items() for name in reversed(names) if name in present}


def cache_folder(name: str) -> str:
    """Where things called ``name`` are kept for this user between runs; the folder may not exist yet."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "visionzoo", name)
