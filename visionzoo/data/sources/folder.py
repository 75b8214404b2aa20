"""Folders of images: one subfolder per class, as torchvision's ImageFolder reads them, or images at any depth."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from visionzoo.data.images import HEIC_HINT, image_extensions
from visionzoo.data.sources.base import FilesSource, Source
from visionzoo.data.sources.paths import SPLIT_NAMES, must_exist, split_folders
from visionzoo.text import nfc

#: Endings of pictures that PIL does not read: of phones, of cameras, of programs that draw.
_CAMERAS = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".raw")
_DRAWINGS = (".svg", ".psd", ".ai", ".xcf", ".exr")
PICTURE_ENDINGS = frozenset((".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", *_CAMERAS, *_DRAWINGS))
_HEIC = {".heic", ".heif", ".hif"}


def list_images(folder: str) -> tuple[list[bytes], Counter[str]]:
    """Image files below ``folder``, told by their endings, sorted.

    Hidden files and folders are passed over. Symbolic links are followed, but no folder is entered twice on one way
    down, and none that ``folder`` lies in: a link back up would bring in other classes, or the other splits.

    Returns:
        names relative to ``folder``, and how many visible files there are of each ending that is not an image's.
    """
    endings = tuple(os.fsencode(ext) for ext in image_extensions())
    found: list[bytes] = []
    ignored: Counter[str] = Counter()
    root = os.fsencode(folder)
    todo: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", _parents(root))]
    while todo:
        below, above = todo.pop()
        here = os.path.join(root, below) if below else root
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in above:
            continue  # a link back up
        above = above | {(status.st_dev, status.st_ino)}
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                name = os.path.join(below, entry.name)
                if _is_folder(entry):
                    todo.append((name, above))
                elif entry.name.lower().endswith(endings):
                    found.append(name)
                else:
                    ignored[os.fsdecode(os.path.splitext(entry.name)[1]).lower()] += 1
    return sorted(found), ignored


def not_read(found: int, ignored: Counter[str]) -> str | None:
    """A sentence on pictures that were passed over, or None; ``found`` is how many images there are beside them."""
    pictures = {ending: n for ending, n in sorted(ignored.items()) if ending in PICTURE_ENDINGS}
    if not pictures:
        return None
    count = sum(pictures.values())
    listed = ", ".join(f"{n} {ending}" for ending, n in pictures.items())
    hint = f"; {HEIC_HINT}" if _HEIC & set(pictures) else "; convert them to JPEG or PNG"
    return f"{count} of {found + count} pictures are not read, since PIL cannot: {listed}{hint}"


def warn_not_read(folder: str, found: int, ignored: Counter[str]) -> None:
    """Say what of a folder's pictures is passed over, if anything is."""
    if text := not_read(found, ignored):
        warnings.warn(f"{folder}: {text}", stacklevel=3)


def _parents(folder: bytes) -> frozenset[tuple[int, int]]:
    """(device, inode) of every folder that this one lies in."""
    found: list[tuple[int, int]] = []
    here = os.path.dirname(os.path.realpath(folder))
    while not found or here != os.path.dirname(here):
        status = os.stat(here)
        found.append((status.st_dev, status.st_ino))
        here = os.path.dirname(here)
    return frozenset(found)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it as an image will say so
        return False


def subfolders(folder: str) -> list[str]:
    """Names of visible subfolders, sorted."""
    with os.scandir(os.fsencode(folder)) as entries:
        names = [e.name for e in entries if not e.name.startswith((b".", b"__")) and _is_folder(e)]
    return sorted(os.fsdecode(name) for name in names)


def read_folder(folder: str) -> FilesSource:
    """A tree of class folders as a source; classes are the subfolders, sorted.

    Raises:
        ValueError: without subfolders, or with a class that has no image (named).
    """
    names = subfolders(folder)
    if not names:
        images, ignored = list_images(folder)
        hint = f" ({text})" if (text := not_read(len(images), ignored)) else ""
        have = f"{len(images)} images but no subfolders" if images else "no images"
        raise ValueError(
            f"{folder} has {have}{hint}; class folders need one subfolder per class, such as "
            f"{folder}/cat/1.jpg "
            "(for images without labels use --data.predict_path)"
        )
    files: list[bytes] = []
    targets: list[int] = []
    empty: list[str] = []
    others: Counter[str] = Counter()
    # Two folders may have one name, in two spellings of Unicode.
    spelled = [nfc(os.fsencode(name).decode("utf-8", "backslashreplace")) for name in names]
    classes = tuple(dict.fromkeys(spelled))
    for name, label in zip(names, spelled, strict=True):
        found, ignored = list_images(os.path.join(folder, name))
        others += ignored
        if not found:
            hint = not_read(0, ignored) or f"{ignored.total()} files that are not images"
            empty.append(f"{name!r}" + (f" ({hint})" if ignored else ""))
        files += [os.path.join(os.fsencode(name), file) for file in found]
        targets += [classes.index(label)] * len(found)
    warn_not_read(folder, len(files), others)
    if empty:
        if len(empty) == len(names):
            raise ValueError(
                f"no images in {folder}: its subfolders {', '.join(empty[:5])} hold none that PIL can read"
            )
        raise ValueError(
            f"{folder} has {len(empty)} class folders without images: {', '.join(empty[:10])}; remove or fill them"
        )
    return FilesSource(folder, files, np.array(targets, dtype=np.int64), classes)


def read_split_folders(path: str) -> dict[str, Source]:
    """Class folders under split folders, or one tree of them. A folder ``train`` with no folders inside is a class."""
    present = {name.lower(): name for name in subfolders(path)}
    named: dict[str, Source] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            folder = os.path.join(path, present.get(name, ""))
            if name in present and subfolders(folder) and split not in named:
                named[split] = read_folder(folder)
    spare = set(present) - {name for names in SPLIT_NAMES.values() for name in names}
    if named and spare:
        warnings.warn(
            f"{path}: beside {', '.join(named)}, these folders are not read: {sorted(spare)[:8]}", stacklevel=2
        )
    return named or {"train": read_folder(path)}


def read_image_folders(path: str) -> dict[str, Source]:
    """Images at any depth: below split folders, or all of them. Class folders mean nothing here."""
    below = split_folders(path)
    if "train" not in below or train_is_one_of_many(path, below, lambda folder: bool(list_images(folder)[0])):
        below = {"train": path}
    return {split: open_unlabelled(folder) for split, folder in below.items()}


def train_is_one_of_many(path: str, below: Mapping[str, str], holds: Callable[[str], bool]) -> bool:
    """Whether ``train`` is a name beside others, as in CIFAR-100, whose classes apple, bus and train are no splits.

    A folder ``train`` that has folders is a split, and what lies beside it is not read. Either is said.

    Args:
        path: the folder.
        below: what :func:`split_folders` finds there.
        holds: whether a folder holds what is looked for.
    """
    if set(below) != {"train"}:
        return False
    beside = [name for name in subfolders(path) if os.path.join(path, name) != below["train"]]
    beside = [name for name in beside if holds(os.path.join(path, name))]
    if not beside:
        return False
    shown, one = ", ".join(beside[:5]), not subfolders(below["train"])
    said = "is read as one folder beside them, not as a split" if one else "is a split, and they are not read"
    warnings.warn(
        f"{path} has {shown} beside train, which {said}; rename or move what is meant otherwise", stacklevel=2
    )
    return one


def class_folders(path: str) -> dict[str, str]:
    """Name of each class -> its folder, in what a folder of images has to evaluate on.

    Empty where its subfolders do not look like classes: fewer than two, images beside them, or one without images.
    """
    splits = split_folders(path)
    parts = [splits[split] for split in ("val", "test", "train") if split in splits and subfolders(splits[split])]
    below = parts[0] if parts else path
    names = subfolders(below)
    with os.scandir(below) as entries:
        loose = any(e.is_file() and os.path.splitext(e.name)[1].lower() in image_extensions() for e in entries)
    if len(names) < 2 or loose or not all(list_images(os.path.join(below, name))[0] for name in names):
        return {}
    return {name: os.path.join(below, name) for name in names}


def open_unlabelled(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> FilesSource:
    """Images for prediction: a folder (searched to any depth), a file, or a list of files.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for a folder without images, or an empty list.
    """
    if isinstance(paths, str | os.PathLike):
        path = os.fspath(paths)
        must_exist(path)
        if os.path.isdir(path):
            found, ignored = list_images(path)
            if not found:
                raise ValueError(f"no images in {path} ({not_read(0, ignored) or f'{ignored.total()} other files'})")
            warn_not_read(path, len(found), ignored)
            return FilesSource(path, found)
        return FilesSource("", [os.fsencode(path)])
    files = [os.fspath(path) for path in paths]
    if not files:
        raise ValueError("no images to predict: the list of paths is empty")
    for path in files:
        must_exist(path)
    return FilesSource("", [os.fsencode(path) for path in files])
