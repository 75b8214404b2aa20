"""The one entry to images with masks: what is this path, and what are its splits?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionzoo.data.sources.base import printable
from visionzoo.data.sources.coco import SegmentAnythingSource, read_coco, split_of_file
from visionzoo.data.sources.folder import list_images, warn_not_read
from visionzoo.data.sources.label_maps import LabelMapSource
from visionzoo.data.sources.objects import ObjectSource, ShapeObjects
from visionzoo.data.sources.paths import must_exist, split_folders, split_of
from visionzoo.data.sources.shapes import VAL_LENGTH, ShapesSource, shapes_length
from visionzoo.data.sources.split import with_validation

#: Share of the training images held out where the data have no validation split.
DEFAULT_FRACTION = 0.1
#: Fewest and most objects in a picture of the built-in shapes.
SHAPES_OBJECTS = (1, 4)


@dataclass(frozen=True, kw_only=True)
class ObjectSets:
    """What was found under a path."""

    named: dict[str, ObjectSource]  #: by split: train, val, test
    problems: tuple[tuple[str, str], ...] = ()  #: (file, what is wrong with it) of what was passed over
    without_objects: int = 0  #: training images that have none and were left out


def open_objects(
    path: str,
    *,
    val_path: str | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    image_root: str | None = None,
    object_name: str = "",
    void: int | None = None,
    shapes_size: int = 128,
) -> ObjectSets:
    """Open images with masks, whatever they are. Annotations of COCO are read, others and images are not.

    Args:
        path: ``shapes`` or ``shapes:N`` (built in); an instance JSON of COCO, or a folder with ``instances_train.json``
            etc. (in it or in ``annotations/``); a folder with ``images/`` and ``masks/``, label maps of the same names;
            a folder of SA-1B's pairs of ``.jpg`` and ``.json``. The last two may have ``train``/``val``/``test`` above.
        val_path: validation data of their own, of any of these kinds.
        val_fraction: where there is no validation split, the share of training images to hold out. None: use the test
            split if there is one, otherwise hold out 0.1.
        seed: of the hold-out, and of ``shapes``.
        image_root: folder of the images of a COCO file, where it is not where COCO has it.
        object_name: what the objects of label maps are.
        void: the value of label maps that is no object and not scored, such as VOC's 255.
        shapes_size: pixels per edge of ``shapes``.

    Raises:
        FileNotFoundError: for a missing path, or images that are not there.
        ValueError: for a path that holds none of these, masks that cannot be used, or a void value for data that have
            none.
    """
    if void is not None and not 0 < void < 2**31:
        raise ValueError(f"void={void} must be a value of the label maps above 0, such as 255")
    length = shapes_length(path)
    if length is not None:
        _look_at_maps({}, path, void)
        return ObjectSets(
            named={
                "train": _shapes(length, seed, 0, shapes_size),
                "val": _shapes(VAL_LENGTH, seed, length, shapes_size),
            }
        )
    problems: list[tuple[str, str]] = []
    maps = _Maps(object_name, void)
    named = _open_any(path, image_root, maps, problems)
    if val_path is not None:
        other = _open_any(val_path, image_root, maps, problems)
        named["val"] = other.get("val") or other.get("test") or other["train"]
    _look_at_maps(named, path, void)
    named = with_validation(named, val_fraction, seed, default=DEFAULT_FRACTION)
    train, left_out = named.get("train"), 0
    if train is not None and train.object_counts is not None:
        having = np.flatnonzero(train.object_counts)
        left_out = len(train) - len(having)
        if not len(having):
            listed = "".join(f"; {reason}" for _, reason in problems[:3])
            raise ValueError(f"{path}: none of the {len(train)} training images has an object{listed}")
        named = {**named, "train": train.take(having)} if left_out else named
    return ObjectSets(named=named, problems=tuple(problems), without_objects=left_out)


class _Maps(NamedTuple):
    """How label maps are read."""

    object_name: str
    void: int | None


def _look_at_maps(named: dict[str, ObjectSource], path: str, void: int | None) -> None:
    """Warn of what is odd in label maps, once for each kind of oddity."""
    maps = [source for source in named.values() if isinstance(source, LabelMapSource)]
    if void is not None and not maps:
        raise ValueError(f"void={void} is for label maps (images/ and masks/), and {path} has none")
    for text in dict.fromkeys(text for source in maps for text in source.look()):
        warnings.warn(f"{path}: {text}", stacklevel=3)


def _shapes(length: int, seed: int, start: int, size: int) -> ObjectSource:
    return ShapeObjects(ShapesSource(length, seed=seed, start=start, size=size, objects=SHAPES_OBJECTS))


def _open_any(
    path: str, image_root: str | None, maps: _Maps, problems: list[tuple[str, str]]
) -> dict[str, ObjectSource]:
    must_exist(path)
    if os.path.isdir(path):
        return _open_folder(path, image_root, maps, problems)
    if path.lower().endswith(".json"):
        return {"train": _coco(path, image_root, problems)}
    raise ValueError(f"{path} is not a set of masks; a file can be COCO's instance .json")


def _open_folder(
    path: str, image_root: str | None, maps: _Maps, problems: list[tuple[str, str]]
) -> dict[str, ObjectSource]:
    if files := _instance_files(path):
        named: dict[str, ObjectSource] = {}
        for file in files:
            split = split_of(split_of_file(os.path.basename(file)).rstrip("0123456789")) or "train"
            if split in named:
                raise ValueError(f"{path} has several instance files for {split}: {', '.join(files)}; name one of them")
            named[split] = _coco(file, image_root, problems)
        return named
    below = split_folders(path)
    for folders in (below, {"train": path}):
        found = {split: source for split, f in folders.items() if (source := _plain_folder(f, maps, problems))}
        if found:
            return found
    raise ValueError(
        f"no masks in {path}: need instances_train.json (COCO), the folders images/ and masks/, or a .json beside "
        "every image (SA-1B), each also below train/ and val/"
    )


def _instance_files(path: str) -> list[str]:
    folders = [folder for folder in (path, os.path.join(path, "annotations")) if os.path.isdir(folder)]
    for folder in folders:
        names = sorted(n for n in os.listdir(folder) if n.lower().endswith(".json") and not n.startswith("."))
        for wanted in (
            [n for n in names if n.startswith("instances")],
            [n for n in names if split_of(n)],
        ):
            if wanted:
                return [os.path.join(folder, name) for name in wanted]
    return []


def _coco(path: str, image_root: str | None, problems: list[tuple[str, str]]) -> ObjectSource:
    source = read_coco(path, image_root)
    problems += [(path, text) for text in source.problems]
    return source


def _plain_folder(folder: str, maps: _Maps, problems: list[tuple[str, str]]) -> ObjectSource | None:
    """``images/`` + ``masks/``, or images with a JSON each; None if it is neither."""
    if has_label_maps(folder):
        return _label_maps(os.path.join(folder, "images"), os.path.join(folder, "masks"), maps, problems)
    found, ignored = list_images(folder)
    root = os.fsencode(folder)
    paired = [n for n in found if os.path.exists(os.path.join(root, os.path.splitext(n)[0] + b".json"))]
    if not paired:
        return None
    warn_not_read(folder, len(found), ignored)
    _note_unpaired(folder, set(found) - set(paired), "no .json beside it", problems)
    return SegmentAnythingSource(folder, paired)


def holds_objects(path: str) -> bool:
    """Whether a path is one that :func:`open_objects` reads, by what lies there (not ``shapes``)."""
    if os.path.isfile(path):
        return path.lower().endswith(".json") and _is_object(path)
    if not os.path.isdir(path):
        return False
    if any(_is_object(file) for file in _instance_files(path)):
        return True
    return any(has_label_maps(f) or _has_pairs(f) for f in (path, *split_folders(path).values()))


def _has_pairs(folder: str) -> bool:
    """Whether an image has a JSON with annotations beside it, as in SA-1B; looks at a few."""
    root, names = os.fsencode(folder), list_images(folder)[0][:20]
    beside = [os.path.join(root, os.path.splitext(name)[0] + b".json") for name in names]
    return any(os.path.exists(file) and b'"segmentation"' in Path(os.fsdecode(file)).read_bytes() for file in beside)


def _is_object(file: str) -> bool:
    """Whether a JSON file holds an object, as COCO's does, and not a list of rows. Looks at its beginning."""
    with open(file, "rb") as opened:
        head = opened.read(4096)
    return head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1] == b"{"


def has_label_maps(folder: str) -> bool:
    """Whether a folder has ``images/`` and ``masks/`` in it."""
    return all(os.path.isdir(os.path.join(folder, name)) for name in ("images", "masks"))


def _label_maps(images: str, masks: str, read: _Maps, problems: list[tuple[str, str]]) -> ObjectSource:
    (images_found, ignored), (maps_found, _) = list_images(images), list_images(masks)
    warn_not_read(images, len(images_found), ignored)
    pictures, maps = ({os.path.splitext(n)[0]: n for n in names} for names in (images_found, maps_found))
    both = sorted(set(pictures) & set(maps))
    if not both:
        raise ValueError(
            f"no image of {images} ({len(pictures)}) has a mask of the same name in {masks} ({len(maps)}); "
            "1.jpg goes with 1.png"
        )
    _note_unpaired(images, {pictures[k] for k in set(pictures) - set(maps)}, "no mask of the same name", problems)
    _note_unpaired(masks, {maps[k] for k in set(maps) - set(pictures)}, "no image of the same name", problems)
    return LabelMapSource(images, [pictures[k] for k in both], masks, [maps[k] for k in both], *read)


def _note_unpaired(
    folder: str, names: Sequence[bytes] | set[bytes], reason: str, problems: list[tuple[str, str]]
) -> None:
    problems += [(printable(os.path.join(folder, os.fsdecode(name))), reason) for name in sorted(names)]
