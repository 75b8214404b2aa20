"""Boxes, crops and small regions of masks. Legend: (h, w) image, K masks."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from visionzoo.metrics.segmentation import connected_components, largest_component

#: Boxes this near to a crop's edge, in pixels, are taken to be cut off by it.
EDGE_TOLERANCE = 20.0
#: Each layer's crops overlap by this share of the shorter side, in the first.
CROP_OVERLAP = 512 / 1500


def generate_crop_boxes(
    size: tuple[int, int], layers: int, overlap: float = CROP_OVERLAP
) -> list[tuple[int, list[int]]]:
    """The whole image as layer 0, then ``2 ** i`` by ``2 ** i`` overlapping crops in layer i: (layer, x0, y0, x1, y1).

    Of an image of fewer pixels than that there are fewer crops: none is empty.

    Args:
        size: (h, w).
        layers: beside the whole image.
        overlap: share of the shorter side by which crops overlap in layer 1; halved in each further layer.
    """
    h, w = size
    found: list[tuple[int, list[int]]] = [(0, [0, 0, w, h])]
    for layer in range(1, layers + 1):
        n = 2**layer
        shared = int(overlap * min(h, w) * (2 / n))
        width, height = (math.ceil((shared * (n - 1) + side) / n) for side in (w, h))
        corners = product(((width - shared) * i for i in range(n)), ((height - shared) * i for i in range(n)))
        found += [(layer, [x, y, min(x + width, w), min(y + height, h)]) for x, y in corners if x < w and y < h]
    return found


def is_box_near_crop_edge(boxes: np.ndarray, crop: list[int], size: tuple[int, int]) -> np.ndarray:
    """Which boxes end near an edge of the crop that is no edge of the image: (K, 4) in pixels of the image -> (K,)."""
    image = np.array([0, 0, size[1], size[0]], dtype=np.float32)
    values = boxes.astype(np.float32)
    near_crop = np.abs(values - np.array(crop, dtype=np.float32)) <= EDGE_TOLERANCE
    return (near_crop & ~(np.abs(values - image) <= EDGE_TOLERANCE)).any(axis=1)


def remove_small_regions(mask: np.ndarray, area: float) -> tuple[np.ndarray, bool]:
    """Fill holes, then drop islands, below ``area`` pixels: (h, w) bool -> the mask, and whether any were found.

    Neighbours touch at corners too. The largest island stays, however small.
    """
    holes = _small_parts(~mask, area)
    filled = mask | holes
    islands = _small_parts(filled, area)
    found = bool(holes.any() or islands.any())
    if islands.any() and not (filled & ~islands).any():
        islands &= ~largest_component(filled)
    return filled & ~islands, found


def _small_parts(mask: np.ndarray, area: float) -> np.ndarray:
    labels, sizes = connected_components(mask)
    small = sizes < area
    small[0] = False  # what is not in the mask
    return small[labels]
