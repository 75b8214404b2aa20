"""What the names of files and folders say."""

from __future__ import annotations

import os
import unicodedata

from visionzoo.files import refuse_address, similar_names

#: Names people give to a split. A file belongs to a split if its name starts with one of them.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def must_exist(path: str) -> None:
    """Raises FileNotFoundError for a missing path, suggesting near names, and ValueError for one of the network's."""
    if os.path.exists(path):
        return
    refuse_address(path)
    parent, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    near = similar_names(name, os.listdir(parent))
    hint = (
        f"did you mean {' or '.join(os.path.join(parent, n) for n in near)}?" if near else f"{parent} has no {name!r}"
    )
    raise FileNotFoundError(f"no such file or folder: {path}; {hint} (built-in sets: digits, shapes)")


def found_name(root: str, name: str) -> bytes:
    """A file name as a table has it, as the file below ``root`` is called.

    Names from Windows have backslashes, those from macOS decomposed letters, those from a spreadsheet a space around.
    Only such names are looked for, and one that is not found in any spelling stays as it is.

    Raises:
        ValueError: for a name that no file system can hold.
    """
    plain = name.strip()
    if name.isascii() and plain == name and "\\" not in name:
        return os.fsencode(name)
    try:
        for spelling in (name, plain, plain.replace("\\", "/")):
            if (found := _respelled(root, spelling)) is not None:
                return os.fsencode(found)
        return os.fsencode(name)
    except ValueError as error:  # a zero byte, or half of a character
        raise ValueError(f"{name!a} cannot be the name of a file: {error}") from error


def _respelled(root: str, name: str) -> str | None:
    """``name`` with each part in the form of Unicode that the file system has it in; None where it has none."""
    found = ""
    for part in name.split("/"):
        forms = [part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))]
        there = next((p for p in forms if os.path.lexists(os.path.join(root, f"{found}{p}"))), None)
        if there is None and part:
            return None
        found += f"{there or ''}/"
    return found.removesuffix("/")


def beside(folder: str, image: bytes, ending: str) -> bytes:
    """The file of an image's name and another ending; ``image`` is relative to ``folder``."""
    return os.path.join(os.fsencode(folder), os.path.splitext(image)[0] + os.fsencode(ending))


def split_of(name: str) -> str | None:
    """The split that a file name or a value of a split column belongs to."""
    stem = name.lower().split(".")[0]
    words = stem.replace("_", "-").split("-")
    return next((split for split, names in SPLIT_NAMES.items() if words[0] in names), None)


def split_of_value(value: str, where: str) -> str:
    """The split that a value of a split column names; nothing written there is ``train``.

    Raises:
        ValueError: for a value that names none; ``where`` says where it stands.
    """
    split = split_of(value) if value else "train"
    if split is None:
        known = ", ".join(n for names in SPLIT_NAMES.values() for n in names)
        raise ValueError(f"{where}: cannot use the split {value!r}; known are {known}")
    return split


def files_in(folder: str, *endings: str) -> list[str]:
    """Visible files of a folder with one of these endings, in lower case; sorted."""
    names = sorted(n for n in os.listdir(folder) if not n.startswith(".") and n.lower().endswith(endings))
    return [os.path.join(folder, name) for name in names]


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


def manifest_by_split(folder: str, files: list[str]) -> dict[str, str]:
    """As :func:`by_split`, where a split is in one file.

    Raises:
        ValueError: if a split has several.
    """
    found = {}
    for split, several in by_split(folder, files).items():
        if len(several) > 1:
            raise ValueError(f"{folder} has several manifests for {split}: {', '.join(several)}; name one of them")
        found[split] = several[0]
    return found


def split_folders(path: str) -> dict[str, str]:
    """Folders below ``path`` that are named after splits, by split."""
    present = {entry.name.lower(): entry.path for entry in os.scandir(path) if entry.is_dir()}
    return {split: present[name] for split, names in SPLIT_NAMES.items() for name in reversed(names) if name in present}
