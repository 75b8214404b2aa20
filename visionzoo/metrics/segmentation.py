"""How good masks are, and how many clicks they take.

Legend: N objects, K clicks, (H, W) pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_iou(masks: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union: (..., H, W) bool and (..., H, W) bool -> (...) float32. Two empty masks have 1."""
    masks, targets = masks.bool(), targets.bool()
    union = (masks | targets).sum((-2, -1))
    shared = (masks & targets).sum((-2, -1))
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0)


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
