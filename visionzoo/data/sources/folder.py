"""Class folders: one subfolder per class, images at any depth below it, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import os
import warnings
from collections import Counter

import numpy as np

from visionzoo.data.images import HEIC_HINT, image_extensions
from visionzoo.data.sources.base import FilesSource
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
