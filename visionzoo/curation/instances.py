"""Images with masks written again, as COCO's instance files, which ``train.py segment`` reads.

Legend: (H, W) pixels of an image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.objects import ObjectMasks, ObjectSource
from visionzoo.data.sources.rle import RLE
from visionzoo.files import atomic_path
from visionzoo.inference.progress import track

#: (split, place of an image) -> places of its masks or captions that are left out.
Parts = Mapping[tuple[str, int], set[int]]


def write_instances(
    folder: Path, splits: Splits[Any], kept: Mapping[str, Sequence[int]], gone: Parts
) -> Iterator[Path]:
    """Write ``instances_<split>.json`` for each split with images, and pictures that lie in no file beside them.

    Masks are run lengths, image after image, so that no more than one image's are in memory.

    Args:
        folder: where; it is made.
        splits: of the data.
        kept: places of the images that stay, of each split.
        gone: masks that are left out.

    Yields:
        what was written.
    """
    for split, source in splits.items():
        if not kept[split]:
            continue
        assert isinstance(source, ObjectSource)
        folder.mkdir(exist_ok=True)
        out = folder / f"instances_{split}.json"
        images: list[dict[str, Any]] = []
        categories = {name: number for number, name in enumerate(source.categories, 1)}
        with atomic_path(out) as temporary, temporary.open("w", encoding="ascii") as file:
            file.write('{"annotations": [')
            count = 0
            for number, place in enumerate(track(kept[split], len(kept[split]), f"masks of {split}"), 1):
                objects = source.objects(place)
                height, width = objects.size
                name = _file(folder / split, source, place)
                images.append({"id": number, "file_name": name, "height": height, "width": width})
                for one in _annotations(objects, gone[split, place], categories):
                    file.write(f"{',' * (count > 0)}\n{json.dumps({'id': count + 1, 'image_id': number, **one})}")
                    count += 1
            listed = [{"id": number, "name": name} for name, number in categories.items()]
            file.write(f'],\n"categories": {json.dumps(listed)},\n"images": {json.dumps(images)}}}\n')
        yield out


def _annotations(objects: ObjectMasks, gone: set[int], categories: dict[str, int]) -> Iterator[dict[str, Any]]:
    for k, name in enumerate(objects.names):
        if k not in gone:
            runs = RLE.of(np.ascontiguousarray(objects.mask(k).T))
            x0, y0, x1, y1 = runs.box
            category = {"category_id": categories.setdefault(name, len(categories) + 1)} if name else {}
            box = [x0, y0, x1 + 1 - x0, y1 + 1 - y0] if runs.area else [0, 0, 0, 0]
            yield {**category, "iscrowd": 0, "area": runs.area, "bbox": box, "segmentation": runs.uncompressed()}


def _file(folder: Path, source: Source, place: int) -> str:
    """The image's file; where it lies in none, a new one in ``folder``."""
    raw = source.raw(place)
    if isinstance(raw, str | os.PathLike):
        return os.path.abspath(os.fsdecode(raw))
    with atomic_path(folder / f"{place:08d}.png") as temporary:
        source.read(place).save(temporary)
    return f"{place:08d}.png"
