"""The one entry to captioned images: what is this path, and what are its splits?"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence

import numpy as np

from visionzoo.data.sources.caption_files import (
    has_caption_column,
    has_text_files,
    read_caption_manifest,
    read_text_files,
)
from visionzoo.data.sources.captions import CaptionSets, CaptionSource, ClassTexts, captions_from_classes
from visionzoo.data.sources.manifest import has_label_column
from visionzoo.data.sources.open import open_evaluation, open_splits
from visionzoo.data.sources.paths import by_split, must_exist, split_folders, split_of
from visionzoo.data.sources.rows import ENDINGS, is_table
from visionzoo.data.sources.shapes import (
    COLOURS,
    COMBINATIONS,
    KINDS,
    VAL_LENGTH,
    ShapesSource,
    describe,
    shapes_length,
)
from visionzoo.data.sources.shards import expand_braces, read_shards, refuse_remote
from visionzoo.data.sources.split import with_validation

#: Share of the training images held out where the data have no validation split.
DEFAULT_FRACTION = 0.05

Combinations = tuple[tuple[str, str], ...]


def open_captions(
    path: str,
    *,
    val_path: str | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    templates: Sequence[str],
    image_column: str | None = None,
    caption_column: str | None = None,
    holdout: str | None = None,
) -> CaptionSets:
    """Open captioned images, whatever they are. Captions are read, images are not.

    Args:
        path: ``shapes`` or ``shapes:N`` (built in, N training pictures); a CSV, TSV or JSONL manifest or a folder of
            ``train.jsonl`` etc.; a folder of images with ``.txt`` files beside them; tar shards: one, a folder, or
            ``{00000..00010}.tar``; anything with classes that :func:`open_splits` takes, through ``templates``. A
            folder may have ``train``/``val``/``test`` below it.
        val_path: validation data of their own, of any of these kinds.
        val_fraction: where there is no validation split, the share of training images to hold out. None: use the test
            split if there is one, otherwise hold out 0.05 (0.2 of every class where captions are made of classes).
        seed: of the hold-out, and of ``shapes``.
        templates: captions of class names.
        image_column, caption_column: columns with unusual names; ``caption_column`` also names a key of shards' JSON.
        holdout: of ``shapes`` only: (colour, kind) that are in ``val`` and never in ``train``, see
            :func:`held_out_shapes`.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for a path that holds nothing readable, no caption at all, or an option that does not fit.
    """
    length = shapes_length(path)
    if length is not None:
        return CaptionSets(named=_shapes(length, seed, holdout))
    if holdout is not None:
        raise ValueError(f"holdout={holdout!r} is for the built-in set shapes, not for {path}")
    columns = (image_column, caption_column)
    found = _open_any(path, columns)
    if found is None:
        splits = open_splits(path, val_path=val_path, val_fraction=val_fraction, seed=seed)
        # One caption per image suffices to evaluate.
        uses = {"train": templates}
        return CaptionSets(
            named={name: captions_from_classes(s, uses.get(name, templates[:1])) for name, s in splits.items()}
        )
    if val_path is not None:
        other = _open_any(val_path, columns)
        if other is None:
            source = captions_from_classes(open_evaluation(val_path, seed=seed), templates[:1])
            other = CaptionSets(named={"val": source})
        held = other.named.get("val") or other.named.get("test") or other.named["train"]
        found = CaptionSets(
            named={**found.named, "val": held},
            empty_captions=found.empty_captions + other.empty_captions,
            problems=(*found.problems, *other.problems),
        )
    named = with_validation(found.named, val_fraction, seed, default=DEFAULT_FRACTION)
    for split, source in named.items():
        if not any(len(source.captions(i)) for i in range(len(source))):
            raise ValueError(f"{path}: none of the {len(source)} images of {split} has a caption")
    return CaptionSets(named=named, empty_captions=found.empty_captions, problems=found.problems)


def holds_captions(path: str) -> bool:
    """Whether a path has captions of its own, and no labels that classification would read."""
    if "://" in path or shapes_length(path) is not None or path == "digits" or path.startswith("torchvision:"):
        return False
    tables = _manifests(path) if os.path.isdir(path) else [path] if os.path.isfile(path) and is_table(path) else []
    if tables:
        return has_caption_column(tables[0]) and not has_label_column(tables[0])
    return _open_any(path, (None, None)) is not None


def _manifests(folder: str) -> list[str]:
    files = sorted(os.path.join(folder, n) for n in os.listdir(folder) if not n.startswith("."))
    return [f for f in files if f.lower().endswith(ENDINGS) and split_of(os.path.basename(f))]


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


def _shapes(length: int, seed: int, holdout: str | None) -> dict[str, CaptionSource]:
    held = held_out_shapes(holdout) if holdout is not None else ()
    kept = tuple(pair for pair in COMBINATIONS if pair not in set(held))
    return {
        "train": _captioned_shapes(length, seed, 0, kept),
        "val": _captioned_shapes(VAL_LENGTH, seed, length, held or COMBINATIONS),
    }


def _captioned_shapes(length: int, seed: int, start: int, combinations: Combinations) -> CaptionSource:
    """Pictures of one object: the combination says the caption, and no picture need be drawn for it."""
    images = ShapesSource(length, seed=seed, start=start, combinations=combinations)
    texts = ClassTexts(images.main_object, [(describe([pair]),) for pair in combinations])
    place = np.array([COMBINATIONS.index(pair) for pair in combinations], dtype=np.int64)
    # The classes of zero-shot evaluation are all combinations, also those that a split leaves out.
    names = tuple(f"{colour} {kind}" for colour, kind in COMBINATIONS)
    return CaptionSource(images, texts, classes=names, targets=place[images.main_object])


def _open_any(path: str, columns: tuple[str | None, str | None]) -> CaptionSets | None:
    """What has captions of its own, by split; None if it can only have classes."""
    refuse_remote(path)
    if not os.path.exists(path) and "{" in path:
        return read_shards(expand_braces(path), caption_column=columns[1])
    if path == "digits" or path.startswith("torchvision:"):
        return None
    if re.search(r"\.(tar\.\w+|tgz)$", path):
        raise ValueError(f"{path} is compressed, and samples cannot be read by position; unpack it with gunzip")
    must_exist(path)
    if not os.path.isdir(path):
        return _open_file(path, columns)
    return _open_folder(path, columns)


def _open_file(path: str, columns: tuple[str | None, str | None]) -> CaptionSets | None:
    if path.lower().endswith(".tar"):
        return read_shards([path], caption_column=columns[1])
    if is_table(path) and (columns[1] is not None or has_caption_column(path)):
        return read_caption_manifest(path, image_column=columns[0], caption_column=columns[1])
    return None


def _open_folder(path: str, columns: tuple[str | None, str | None]) -> CaptionSets | None:
    files = sorted(os.path.join(path, n) for n in os.listdir(path) if not n.startswith("."))
    if shards := [f for f in files if f.lower().endswith(".tar")]:
        return _merge({s: read_shards(part, caption_column=columns[1]) for s, part in by_split(path, shards).items()})
    if manifests := _manifests(path):
        parts: dict[str, CaptionSets] = {}
        for split, several in by_split(path, manifests).items():
            if len(several) > 1:
                raise ValueError(f"{path} has several manifests for {split}: {', '.join(several)}; name one of them")
            found = _open_file(several[0], columns)
            if found is None:
                return None
            parts[split] = found
        return _merge(parts)
    below = split_folders(path)
    parts = {split: found for split, folder in below.items() if (found := _captioned_folder(folder, columns))}
    if parts:
        if missing := sorted(set(below) - set(parts)):
            warnings.warn(f"{path}: {', '.join(missing)} has no captions and is not read", stacklevel=3)
        return _merge(parts)
    return read_text_files(path) if has_text_files(path) else None


def _captioned_folder(folder: str, columns: tuple[str | None, str | None]) -> CaptionSets | None:
    shards = sorted(os.path.join(folder, n) for n in os.listdir(folder) if n.lower().endswith(".tar"))
    if shards:
        return read_shards(shards, caption_column=columns[1])
    return read_text_files(folder) if has_text_files(folder) else None


def _merge(parts: dict[str, CaptionSets]) -> CaptionSets:
    """Sets of one split each as one; a manifest with splits inside keeps them."""
    named: dict[str, CaptionSource] = {}
    for split, found in parts.items():
        named |= {split: found.named["train"]} if set(found.named) == {"train"} else found.named
    return CaptionSets(
        named=named,
        empty_captions=sum(found.empty_captions for found in parts.values()),
        problems=tuple(problem for found in parts.values() for problem in found.problems),
    )
