"""Readers of images with masks: what a path can be, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from visionzoo.data.sources.base import Splits, merged, printable
from visionzoo.data.sources.coco import SegmentAnythingSource, read_coco, split_of_file
from visionzoo.data.sources.folder import list_images, warn_not_read
from visionzoo.data.sources.label_maps import LabelMapSource
from visionzoo.data.sources.objects import ObjectSource, ShapeObjects
from visionzoo.data.sources.paths import beside, files_in, split_folders, split_of
from visionzoo.data.sources.reading import ObjectReading, Reader
from visionzoo.data.sources.shapes import ShapesSource, shapes_length, shapes_splits

#: Fewest and most objects in a picture of the built-in shapes.
SHAPES_OBJECTS = (1, 4)

WithObjects = Splits[ObjectSource]


def _shapes(path: str, options: ObjectReading) -> dict[str, ShapeObjects]:
    seed, size = options.seed, options.shapes_size

    def make(length: int, start: int) -> ShapeObjects:
        return ShapeObjects(ShapesSource(length, seed=seed, start=start, size=size, objects=SHAPES_OBJECTS))

    return shapes_splits(path, make)


# COCO's instance files.


def _instance_files(path: str) -> list[str]:
    """The instance file that a path is, or has in it or in its ``annotations/``."""
    if os.path.isfile(path):
        return [path] if path.lower().endswith(".json") else []
    for folder in filter(os.path.isdir, (path, os.path.join(path, "annotations"))):
        files = files_in(folder, ".json")
        named = [f for f in files if os.path.basename(f).startswith("instances")]
        if found := named or [f for f in files if split_of(os.path.basename(f))]:
            return found
    return []


def _coco(path: str, options: ObjectReading) -> WithObjects:
    files = _instance_files(path)
    if files == [path]:
        source = read_coco(path, options.image_root)
        return Splits(train=source, problems=tuple((path, text) for text in source.problems))
    parts: dict[str, WithObjects] = {}
    for file in files:
        split = split_of(split_of_file(os.path.basename(file)).rstrip("0123456789")) or "train"
        if split in parts:
            raise ValueError(f"{path} has several instance files for {split}: {', '.join(files)}; name one of them")
        parts[split] = _coco(file, options)
    return merged(parts)


def _is_coco(path: str, _options: ObjectReading) -> bool:
    """Whether an instance file holds an object, as COCO's does, and not a list of rows. Looks at its beginning."""
    for file in _instance_files(path):
        with open(file, "rb") as opened:
            head = opened.read(4096)
        if head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1] == b"{":
            return True
    return False


# Folders with a mask for each image, perhaps below the folders of splits.


def _folder(path: str, options: ObjectReading) -> WithObjects:
    for folders in (split_folders(path), {"train": path}):
        parts = {split: found for split, folder in folders.items() if (found := _masks(folder, options))}
        if parts:
            return merged(parts)
    raise ValueError(
        f"no masks in {path}: need instances_train.json (COCO), the folders images/ and masks/, or a .json beside "
        "every image (SA-1B), each also below train/ and val/"
    )


def _masks(folder: str, options: ObjectReading) -> WithObjects | None:
    """``images/`` + ``masks/``, or images with a JSON each; None if it is neither."""
    if _has_label_maps(folder):
        return _label_maps(os.path.join(folder, "images"), os.path.join(folder, "masks"), options)
    found, ignored = list_images(folder)
    paired = [name for name in found if os.path.exists(beside(folder, name, ".json"))]
    if not paired:
        return None
    warn_not_read(folder, len(found), ignored)
    problems = _unpaired(folder, set(found) - set(paired), "no .json beside it")
    return Splits(train=SegmentAnythingSource(folder, paired), problems=problems)


def _label_maps(images: str, masks: str, options: ObjectReading) -> WithObjects:
    (images_found, ignored), (maps_found, _) = list_images(images), list_images(masks)
    warn_not_read(images, len(images_found), ignored)
    pictures, maps = ({os.path.splitext(n)[0]: n for n in names} for names in (images_found, maps_found))
    both = sorted(set(pictures) & set(maps))
    if not both:
        raise ValueError(
            f"no image of {images} ({len(pictures)}) has a mask of the same name in {masks} ({len(maps)}); "
            "1.jpg goes with 1.png"
        )
    names, of = [pictures[k] for k in both], [maps[k] for k in both]
    return Splits(
        train=LabelMapSource(images, names, masks, of, options.object_name, options.void),
        problems=(
            *_unpaired(images, {pictures[k] for k in set(pictures) - set(maps)}, "no mask of the same name"),
            *_unpaired(masks, {maps[k] for k in set(maps) - set(pictures)}, "no image of the same name"),
        ),
    )


def _unpaired(folder: str, names: Iterable[bytes], reason: str) -> tuple[tuple[str, str], ...]:
    return tuple((printable(os.path.join(folder, os.fsdecode(name))), reason) for name in sorted(names))


def _has_label_maps(folder: str) -> bool:
    return all(os.path.isdir(os.path.join(folder, name)) for name in ("images", "masks"))


def _has_pairs(folder: str) -> bool:
    """Whether an image has a JSON with annotations beside it, as in SA-1B; looks at a few."""
    files = [beside(folder, name, ".json") for name in list_images(folder)[0][:20]]
    return any(os.path.exists(file) and b'"segmentation"' in Path(os.fsdecode(file)).read_bytes() for file in files)


def _has_masks(path: str, _options: ObjectReading) -> bool:
    if not os.path.isdir(path):
        return False
    return any(_has_label_maps(f) or _has_pairs(f) for f in (path, *split_folders(path).values()))


OBJECT_READERS = (
    Reader("shapes", lambda path, _: shapes_length(path) is not None, _shapes, made_for=lambda *_: False),
    Reader("coco", lambda path, _: bool(_instance_files(path)), _coco, made_for=_is_coco),
    Reader("folder of masks", lambda path, _: os.path.isdir(path), _folder, made_for=_has_masks),
)
