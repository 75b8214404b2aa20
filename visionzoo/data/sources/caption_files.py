"""Captions in a manifest, and captions in ``.txt`` files beside the images."""

from __future__ import annotations

import os
from typing import Any

from visionzoo.data.sources.base import FilesSource, Splits, printable
from visionzoo.data.sources.captions import CaptionSource, PackedTexts, clean_captions
from visionzoo.data.sources.folder import list_images, warn_not_read
from visionzoo.data.sources.manifest import ManifestSource
from visionzoo.data.sources.paths import beside, found_name, split_of_value
from visionzoo.data.sources.rows import IMAGE_COLUMNS, find_column, pick_column, read_rows
from visionzoo.text import decode_text, split_lines

CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "comment")


def has_caption_column(path: str) -> bool:
    """Whether the first row of a manifest has one of the usual columns of captions."""
    first = next(iter(read_rows(path)), None)
    return first is not None and find_column(list(first[1]), CAPTION_COLUMNS) is not None


def read_caption_manifest(
    path: str, *, image_column: str | None = None, caption_column: str | None = None
) -> Splits[CaptionSource]:
    """Read a CSV, TSV or JSONL manifest of images and captions.

    Several captions of an image are a list (JSONL) or several rows with the same file name. File names are relative to
    the manifest. A ``split`` column is respected; without one everything is ``train``.

    Args:
        path: a .csv, .tsv, .jsonl, .ndjson or .json file, UTF-8 or UTF-16.
        image_column, caption_column: column names, where they are not among the usual ones.

    Raises:
        ValueError: for no rows, a missing column, a row that cannot be read (see :func:`read_rows`), a caption that is
            not text or not UTF-8, or an unknown split.
    """
    groups: dict[str, dict[str, list[str]]] = {}  # split -> file -> captions, in the order of the manifest
    image_key = caption_key = split_key = ""
    root = os.path.dirname(path)
    empty = 0
    for place, row in read_rows(path):
        if not image_key:
            columns = list(row)
            image_key = pick_column(path, columns, image_column, IMAGE_COLUMNS, "image_column")
            caption_key = pick_column(path, columns, caption_column, CAPTION_COLUMNS, "caption_column")
            split_key = find_column(columns, ("split",)) or "split"
        texts, dropped = clean_captions(row.get(caption_key), f"{path} {place}")
        empty += dropped
        value = str(row.get(split_key) or "").strip()
        split = split_of_value(value, f"{path} {place}")
        file = str(row.get(image_key) or "")
        # Rows without a file name are unreadable images each of its own.
        groups.setdefault(split, {}).setdefault(file or f"\0{place}", []).extend(texts)
    if not groups:
        raise ValueError(f"{path} has no rows")
    named: dict[str, Any] = {}
    for split, found in groups.items():
        names = [b"" if file.startswith("\0") else found_name(root, file) for file in found]
        named[split] = CaptionSource(ManifestSource(root, names), PackedTexts(found.values()))
    return Splits(**named, empty_captions=empty)


def has_text_files(folder: str, tries: int = 1000) -> bool:
    """Whether images below ``folder`` have a ``.txt`` beside them; looks at no more than ``tries`` images."""
    found, _ = list_images(folder)
    return any(os.path.exists(beside(folder, name, ".txt")) for name in found[:: max(1, len(found) // tries)])


def read_text_files(folder: str) -> Splits[CaptionSource]:
    """Images at any depth below a folder, each with its captions in a ``.txt`` of the same name, one per line.

    A text that cannot be read is a problem of that image, which then has no caption.
    """
    found, ignored = list_images(folder)
    warn_not_read(folder, len(found), ignored)
    texts: list[tuple[str, ...]] = []
    problems: list[tuple[str, str]] = []
    empty = 0
    for name in found:
        path = beside(folder, name, ".txt")
        captions: tuple[str, ...] = ()
        if os.path.exists(path):
            where = printable(os.fsdecode(path))
            try:
                with open(path, "rb") as file:
                    lines = split_lines(decode_text(file.read(), where)[0])
            except (OSError, ValueError) as error:
                problems.append((where, str(error).removeprefix(f"{where} ")))
                lines = []
            captions, dropped = clean_captions(lines, where)
            empty += dropped
        texts.append(captions)
    return Splits(
        train=CaptionSource(FilesSource(folder, found), PackedTexts(texts)),
        empty_captions=empty,
        problems=tuple(problems),
    )
