"""Boxes and connected components of masks, and how many clicks a good mask takes.

Legend: N objects, K clicks, (H, W) pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def clicks_to_iou(ious: Tensor, target: float) -> Tensor:
    """Number of clicks until a mask is good enough: (N, K) IoU after each click -> (N,) int64.

    An object that never gets there counts as K, as is usual for this measure ("NoC").

    Raises:
        ValueError: for no clicks at all.
    """
    if ious.ndim != 2 or ious.shape[1] == 0:
        raise ValueError(f"IoU of shape {tuple(ious.shape)} must be (N, K) with at least one click")
    reached = ious >= target
    first = reached.int().argmax(dim=1) + 1  # the first of equal values
    return torch.where(reached.any(dim=1), first, ious.shape[1])


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes around masks: (N, H, W) bool -> (N, 4) int64, x0, y0, x1, y1 of the outermost pixels; zeros if empty."""
    _, h, w = masks.shape
    masks = masks.bool()
    found = []
    for hits, size in ((masks.any(dim=1), w), (masks.any(dim=2), h)):
        places = torch.arange(size, device=masks.device)
        low = torch.where(hits, places, size).amin(dim=1)
        high = torch.where(hits, places, -1).amax(dim=1)
        found.append((low, high))
    (x0, x1), (y0, y1) = found
    boxes = torch.stack((x0, y0, x1, y1), dim=1)
    return torch.where((x1 >= x0)[:, None], boxes, 0)


def connected_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label of each pixel's component, 0 for background, and the components' areas: (H, W) bool -> (H, W), (1 + C,).

    Neighbours touch at corners too.
    """
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA].copy()


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected component: (H, W) bool -> (H, W) bool; an empty mask stays empty."""
    labels, sizes = connected_components(mask)
    return labels == 1 + int(np.argmax(sizes[1:])) if len(sizes) > 1 else mask
