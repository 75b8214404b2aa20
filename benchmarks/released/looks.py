"""Images changed so that families of networks fall apart: patches left out or shuffled, texture or shape removed, and
an adversary.

Legend: N images, (H, W) pixels, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

#: Shares of the patches left out, and sides of the grid that is shuffled (arXiv 2105.10497, sections 3.1 and 3.3).
DROPPED = (0.0, 0.25, 0.5, 0.75, 0.9)
SHUFFLED = (1, 2, 4, 8, 14)
#: Largest change of a pixel, of 1; small enough that networks that were not trained for it differ (arXiv 1706.06083).
BUDGETS = (0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255)
GREY = 128


def drop_patches(image: np.ndarray, share: float, rng: np.random.Generator, side: int = 14) -> np.ndarray:
    """Grey over a share of the ``side`` x ``side`` patches of an (H, W, 3) uint8 image."""
    out = image.copy()
    rows, columns = _edges(image.shape[0], side), _edges(image.shape[1], side)
    for place in rng.permutation(side * side)[: round(share * side * side)]:
        i, j = divmod(int(place), side)
        out[rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = GREY
    return out


def shuffle_patches(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """The ``side`` x ``side`` patches of an (H, W, 3) uint8 image in another order; what does not divide is cut off."""
    h, w = image.shape[0] // side, image.shape[1] // side
    if h == 0 or w == 0:
        raise ValueError(f"an image of {image.shape[:2]} pixels has no {side} x {side} patches")
    parts = image[: h * side, : w * side].reshape(side, h, side, w, 3).swapaxes(1, 2).reshape(side * side, h, w, 3)
    mixed = parts[rng.permutation(side * side)].reshape(side, side, h, w, 3).swapaxes(1, 2)
    return cv2.resize(np.ascontiguousarray(mixed.reshape(side * h, side * w, 3)), image.shape[1::-1])


def without_texture(image: np.ndarray) -> np.ndarray:
    """Shapes alone: flat areas of one colour with their borders, by repeated bilateral filtering."""
    reach = max(9, round(9 * image.shape[0] / 224) | 1)  # as much of a picture, whatever the input size
    for _ in range(6):
        image = cv2.bilateralFilter(image, d=reach, sigmaColor=60, sigmaSpace=max(3.0, image.shape[0] / 32))
    return image


def without_shape(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Texture alone: an 8 x 8 grid shuffled, in which no outline is left."""
    return shuffle_patches(image, 8, rng)


def _edges(length: int, parts: int) -> list[int]:
    return [round(i * length / parts) for i in range(parts + 1)]


def attack(
    logits: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, budget: float, steps: int = 10, seed: int = 0
) -> Tensor:
    """Projected gradient descent from a random start (arXiv 1706.06083, section 2.1), by the sign of the gradient.

    Args:
        logits: (B, C, H, W) pixels in [0, 1] -> (B, K); differentiable.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) right outputs.
        budget: largest change of a pixel.
        steps: of budget / 4 each.
        seed: of the start.

    Returns:
        (B, C, H, W) pixels in [0, 1], nowhere further than ``budget`` from the images.
    """
    random = torch.Generator().manual_seed(seed)
    low, high = (images - budget).clamp(0, 1), (images + budget).clamp(0, 1)
    start = (2 * torch.rand(images.shape, generator=random) - 1).to(images.device) * budget
    x = torch.minimum(torch.maximum(images + start, low), high)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(logits(x), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, x)
        x = torch.minimum(torch.maximum(x.detach() + budget / 4 * slope.sign(), low), high)
    return x.detach()
