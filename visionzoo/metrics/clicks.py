"""Simulated users: where somebody would click next, and how they would draw a box (arXiv 2304.02643, appendix A).

Points are (x, y) in pixels, whole numbers meaning a pixel's middle, as SAM takes them.

Legend: N objects, (H, W) pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionzoo.metrics.segmentation import largest_component

#: A simulated box corner moves by this share of the side, at most so many pixels (appendix A, "Prompts").
BOX_NOISE, BOX_NOISE_PIXELS = 0.1, 20.0


class Clicks(NamedTuple):
    """One click for each object."""

    points: Tensor  #: (N, 2) float32, (x, y); zeros where there is nothing to click on
    labels: Tensor  #: (N,) int64: 1 on what the mask lacks, 0 on what it has too much
    found: Tensor  #: (N,) bool, False where the mask is right everywhere


def random_clicks(
    masks: Tensor, targets: Tensor, generator: torch.Generator | None = None, *, draw: Tensor | None = None
) -> Clicks:
    """A click on a pixel drawn evenly from where the mask is wrong, as in training.

    Args:
        masks: (N, H, W) bool, what there is so far; all False for a first click, which then lies in the object.
        targets: (N, H, W) bool.
        generator: on the masks' device; None for torch's own.
        draw: (N,) in [0, 1), which of the wrong pixels, in raster order; None draws it.
    """
    masks, targets = masks.bool(), targets.bool()
    wrong = (masks ^ targets).flatten(1)
    found = wrong.any(dim=1)
    if draw is None:
        draw = torch.rand(len(masks), generator=generator, device=masks.device)
    rank = wrong.cumsum(dim=1, dtype=torch.int32)
    count = rank[:, -1:]
    # the chosen pixel is the first one with more than this many wrong ones up to it; the last where there is none
    before = (draw[:, None] * count).long().minimum(count - 1)
    place = (rank <= before).sum(dim=1).clamp(max=wrong.shape[1] - 1)
    label = targets.flatten(1).gather(1, place[:, None])[:, 0].long()
    return _clicks(place, label, found, masks.shape[-1])


def central_clicks(masks: Tensor, targets: Tensor) -> Clicks:
    """A click in the middle of the largest part that is wrong, as in evaluation: always the same.

    The middle is the pixel farthest from the part's border; the image's edge is a border too. Of parts of the same
    size, and pixels equally far, the first in raster order counts. Missing and surplus pixels are never one part.

    Args:
        masks: (N, H, W) bool, what there is so far.
        targets: (N, H, W) bool.
    """
    n, _, width = masks.shape
    place, label = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    found = torch.zeros(n, dtype=torch.bool)
    have, want = masks.bool().cpu().numpy(), targets.bool().cpu().numpy()
    for i in range(n):
        parts = [largest_component(want[i] & ~have[i]), largest_component(have[i] & ~want[i])]
        sizes = [int(part.sum()) for part in parts]
        if max(sizes) == 0:
            continue
        surplus = sizes[1] > sizes[0]
        place[i], label[i], found[i] = _middle(parts[surplus]), int(not surplus), True
    device = masks.device
    return _clicks(place.to(device), label.to(device), found.to(device), width)


def noisy_boxes(
    boxes: Tensor, size: tuple[int, int], generator: torch.Generator | None = None, *, draw: Tensor | None = None
) -> Tensor:
    """Boxes as somebody would draw them: each edge is moved by a normal number, then kept inside the image.

    Args:
        boxes: (N, 4), x0, y0, x1, y1.
        size: (H, W).
        generator: on the boxes' device; None for torch's own.
        draw: (N, 4) normal numbers; None draws them.

    Returns:
        (N, 4) float32, corners in order.
    """
    boxes = boxes.float()
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    if draw is None:
        draw = torch.randn(boxes.shape, generator=generator, device=boxes.device)
    noise = draw * sides * BOX_NOISE
    moved = boxes + noise.clamp(-BOX_NOISE_PIXELS, BOX_NOISE_PIXELS)
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    limit = torch.stack([boxes.new_full((), side - 1) for side in (size[1], size[0])])
    return torch.cat((low, high), dim=1).clamp(min=0).minimum(limit.repeat(2))


def _clicks(place: Tensor, label: Tensor, found: Tensor, width: int) -> Clicks:
    points = torch.stack((place % width, place // width), dim=1).float()
    return Clicks(points * found[:, None], label * found, found)


def _middle(part: np.ndarray) -> int:
    """Raster index of the pixel farthest from the border."""
    import cv2

    framed = np.pad(part.astype(np.uint8), 1)
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # OpenCV's roots differ in the last bit from call to call. Their squares are whole numbers, and ties are ties again.
    return int(np.argmax(np.rint(distance.astype(np.float64) ** 2)))
