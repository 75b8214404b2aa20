"""Readers of captioned images: what a path can be, and how it is read."""

from __future__ import annotations

import os
import re
import warnings

import numpy as np

from visionzoo.data.sources.base import Splits, merged
from visionzoo.data.sources.caption_files import (
    has_caption_column,
    has_text_files,
    read_caption_manifest,
    read_text_files,
)
from visionzoo.data.sources.captions import CaptionSource, ClassTexts
from visionzoo.data.sources.folder import train_is_one_of_many
from visionzoo.data.sources.manifest import has_label_column
from visionzoo.data.sources.paths import by_split, files_in, manifest_by_split, split_folders
from visionzoo.data.sources.reading import CaptionReading, Reader
from visionzoo.data.sources.rows import is_table, manifests_in
from visionzoo.data.sources.shapes import (
    COLOURS,
    COMBINATIONS,
    KINDS,
    ShapesSource,
    describe,
    shapes_length,
    shapes_splits,
)
from visionzoo.data.sources.shards import expand_braces, is_remote, read_shards

Captioned = Splits[CaptionSource]

# The built-in shapes.


Combinations = tuple[tuple[str, str], ...]


def held_out_shapes(holdout: str) -> Combinations:
    """The (colour, kind) that ``holdout`` names: ``red circle, blue star``, or the rule ``diagonal``.

    ``diagonal`` leaves out one kind of each colour, every kind once or twice.

    Raises:
        ValueError: for an unknown combination, or if a colour or a kind would be left without any.
    """
    if holdout.strip() == "diagonal":
        return tuple((c, KINDS[k % len(KINDS)]) for k, c in enumerate(COLOURS))
    held = tuple(tuple(part.split()) for part in holdout.split(",") if part.strip())
    if wrong := [" ".join(pair) for pair in held if pair not in COMBINATIONS]:
        raise ValueError(
            f"holdout names {wrong}; a combination is a colour of {list(COLOURS)} and a kind of {list(KINDS)}, "
            "for example 'red circle, blue star', or 'diagonal' for one of each colour"
        )
    if not held:
        raise ValueError(f"holdout={holdout!r} names no combination; write 'red circle, blue star' or 'diagonal'")
    kept = set(COMBINATIONS) - set(held)
    lost = (set(COLOURS) | set(KINDS)) - {word for pair in kept for word in pair}
    if lost:
        raise ValueError(f"holdout={holdout!r} leaves nothing {' or '.join(sorted(lost))} to learn from")
    return tuple(pair for pair in COMBINATIONS if pair in set(held))


def _shapes(path: str, options: CaptionReading) -> dict[str, CaptionSource]:
    """Pictures of one object: the combination says the caption, and no picture need be drawn for it."""
    held = held_out_shapes(options.holdout) if options.holdout is not None else ()
    kept = tuple(pair for pair in COMBINATIONS if pair not in set(held))

    def make(length: int, start: int) -> CaptionSource:
        combinations = held if held and start else kept
        images = ShapesSource(length, seed=options.seed, start=start, combinations=combinations)
        texts = ClassTexts(images.main_object, [(describe([pair]),) for pair in combinations])
        place = np.array([COMBINATIONS.index(pair) for pair in combinations], dtype=np.int64)
        # The classes of zero-shot evaluation are all combinations, also those that a split leaves out.
        names = tuple(f"{colour} {kind}" for colour, kind in COMBINATIONS)
        return CaptionSource(images, texts, classes=names, targets=place[images.main_object])

    return shapes_splits(path, make)


# Shards.


def _is_pattern(path: str) -> bool:
    return "{" in path and not os.path.exists(path)


def _is_compressed(path: str) -> bool:
    return re.search(r"\.(tar\.\w+|tgz)$", path) is not None


def _is_shards(path: str, _options: CaptionReading) -> bool:
    if is_remote(path) or _is_pattern(path) or _is_compressed(path):
        return True
    return bool(files_in(path, ".tar")) if os.path.isdir(path) else path.lower().endswith(".tar")


def _shards(path: str, options: CaptionReading) -> Captioned:
    if is_remote(path):
        raise ValueError(
            f"{path}: remote shards are not read; copy them to a local folder first (aws s3 cp, gsutil, wget)"
        )
    if _is_compressed(path) and not _is_pattern(path):
        raise ValueError(f"{path} is compressed, and samples cannot be read by position; unpack it with gunzip")
    column = options.caption_column
    if os.path.isdir(path):
        parts = by_split(path, files_in(path, ".tar"))
        return merged({split: read_shards(part, caption_column=column) for split, part in parts.items()})
    return read_shards(expand_braces(path) if _is_pattern(path) else [path], caption_column=column)


# Manifests.


def _manifests(path: str) -> list[str]:
    if os.path.isdir(path):
        return manifests_in(path)
    return [path] if os.path.isfile(path) and is_table(path) else []


def _is_manifest(path: str, options: CaptionReading) -> bool:
    files = _manifests(path)
    if len(files) > 1:
        files = list(manifest_by_split(path, files).values())
    return bool(files) and (options.caption_column is not None or all(map(has_caption_column, files)))


def _manifest(path: str, options: CaptionReading) -> Captioned:
    if os.path.isdir(path):
        parts = manifest_by_split(path, manifests_in(path))
        return merged({split: _manifest(file, options) for split, file in parts.items()})
    return read_caption_manifest(path, image_column=options.image_column, caption_column=options.caption_column)


def _has_no_labels(path: str, options: CaptionReading) -> bool:
    return _is_manifest(path, options) and not has_label_column(_manifests(path)[0])


# Folders with shards, or with texts beside the images, perhaps below the folders of splits.


def _captioned(folder: str) -> bool:
    return bool(files_in(folder, ".tar")) or has_text_files(folder)


def _is_folder(path: str, _options: CaptionReading) -> bool:
    if not os.path.isdir(path) or manifests_in(path):
        return False
    return any(map(_captioned, split_folders(path).values())) or has_text_files(path)


def _folder(path: str, options: CaptionReading) -> Captioned:
    below = split_folders(path)
    captioned = {split: folder for split, folder in below.items() if _captioned(folder)}
    if not captioned or train_is_one_of_many(path, below, has_text_files):
        return read_text_files(path)
    if missing := sorted(set(below) - set(captioned)):
        warnings.warn(f"{path}: {', '.join(missing)} has no captions and is not read", stacklevel=3)
    column = options.caption_column
    parts = {}
    for split, folder in captioned.items():
        shards = files_in(folder, ".tar")
        parts[split] = read_shards(shards, caption_column=column) if shards else read_text_files(folder)
    return merged(parts)


CAPTION_READERS = (
    Reader("shapes", lambda path, _: shapes_length(path) is not None, _shapes, made_for=lambda *_: False),
    Reader("shards", _is_shards, _shards, made_for=lambda path, o: not is_remote(path) and _is_shards(path, o)),
    Reader("manifest", _is_manifest, _manifest, made_for=_has_no_labels),
    Reader("folder", _is_folder, _folder),
)
