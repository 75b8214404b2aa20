"""Masks that are probably not what was meant: empty, there twice, cut off, tiny, or of the whole picture.

Legend: M objects of one image, (H, W) its pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from visionzoo.data.sources.objects import ObjectMasks

#: Intersection over union above which two masks are of one object.
_TWICE = 0.9
#: Share of a mask's own extent, along an edge of the picture, that makes it cut off there.
_CUT = 0.5
#: Pixels below which nothing can be seen; share of the picture that no object has.
_TINY, _WHOLE = 16, 0.95


class ObjectFault(NamedTuple):
    """What is wrong with one mask."""

    reason: str  #: ``empty mask``, ``mask twice``, ``cut off``, ``tiny mask``, ``mask of everything``
    text: str
    score: float  #: higher is worse, among those of one reason
    part: int  #: place of the mask in its image


def mask_faults(objects: ObjectMasks) -> list[ObjectFault]:
    """What is wrong with the masks of one image.

    Args:
        objects: M of them.
    """
    found: list[ObjectFault] = []
    height, width = objects.size
    kept: list[tuple[int, np.ndarray, np.ndarray]] = []
    for k, area in enumerate(objects.areas):
        name = objects.names[k] or "an object"
        if area == 0:
            found.append(ObjectFault("empty mask", f"{name} has no pixels", 0.0, k))
            continue
        mask = objects.mask(k)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
        if area < _TINY:
            found.append(ObjectFault("tiny mask", f"{name} has {area} pixels", -float(area), k))
        if area > _WHOLE * height * width:
            share = float(area) / (height * width)
            found.append(ObjectFault("mask of everything", f"{name} covers {share:.0%} of the picture", share, k))
        elif (cut := _cut(mask, box)) > _CUT:
            text = f"{name}: {cut:.0%} of its extent is at the edge of the picture"
            found.append(ObjectFault("cut off", text, cut, k))
        for other, other_box, packed in kept:
            if _overlap(box, other_box) and min(area, objects.areas[other]) > _TWICE * max(area, objects.areas[other]):
                common = int((mask & _unpacked(packed, objects.size)).sum())
                shared = common / float(area + objects.areas[other] - common)
                if shared > _TWICE:
                    names = " and ".join(dict.fromkeys((objects.names[other] or "an object", name)))
                    text = f"{names}: {shared:.0%} of their pixels are shared"
                    found.append(ObjectFault("mask twice", text, shared, k))
        kept.append((k, box, np.packbits(mask)))
    return found


def _unpacked(packed: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    return np.unpackbits(packed, count=size[0] * size[1]).view(bool).reshape(size)


def _cut(mask: np.ndarray, box: np.ndarray) -> float:
    """The greatest share of the mask's height or width that lies on one edge of the picture."""
    tall, wide = box[2] - box[0], box[3] - box[1]
    edges = (mask[0].sum() / wide, mask[-1].sum() / wide, mask[:, 0].sum() / tall, mask[:, -1].sum() / tall)
    return float(max(edges))


def _overlap(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())
