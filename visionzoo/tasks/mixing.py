"""Mixup and CutMix on the device, on whole batches.

Legend: B batch, C channels, (H, W) pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visionzoo.types import to_device


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """(B,) class indices or (B, K) multi-label targets -> (B, K) float32."""
    if labels.ndim > 1:
        return labels.float()
    # F.one_hot looks at the labels, and waits for the device
    return torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels[:, None], 1.0)


def mixup(images: Tensor, targets: Tensor, lam: float, order: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each image with a partner (arXiv 1710.09412): ``lam * x + (1 - lam) * x[order]``, and the targets alike.

    Args:
        images: (B, C, H, W) float.
        targets: (B, K) float.
        lam: share of the image itself, in [0, 1].
        order: (B,) int64, the partner of each image.
    """
    return torch.lerp(images[order], images, lam), torch.lerp(targets[order], targets, lam)


def cutmix(images: Tensor, targets: Tensor, box: tuple[int, int, int, int], order: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a box of each image's partner (arXiv 1905.04899); targets are mixed by the area that was really pasted.

    Args:
        images: (B, C, H, W) float.
        targets: (B, K) float.
        box: (top, left, bottom, right) in pixels, the last two exclusive.
        order: (B,) int64, the partner of each image.
    """
    top, left, bottom, right = box
    height, width = images.shape[-2:]
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[order, :, top:bottom, left:right]
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, torch.lerp(targets[order], targets, lam)


def cutmix_box(size: tuple[int, int], lam: float, centre: tuple[float, float]) -> tuple[int, int, int, int]:
    """The box of area ``1 - lam`` (before clipping at the border) around ``centre``, given in [0, 1) of (H, W)."""
    height, width = size
    half_h, half_w = (round(edge * (1 - lam) ** 0.5) / 2 for edge in size)
    y, x = centre[0] * height, centre[1] * width
    top, bottom = (min(max(round(v), 0), height) for v in (y - half_h, y + half_h))
    left, right = (min(max(round(v), 0), width) for v in (x - half_w, x + half_w))
    return top, left, bottom, right


class Mixer:
    """Draws one mixup or CutMix per batch from torch's CPU generator, which the engine seeds at every batch.

    Args:
        mixup_alpha: the Beta parameter of mixup; 0 turns it off.
        cutmix_alpha: the Beta parameter of CutMix; 0 turns it off. With both on, each batch draws one of them.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float) -> None:
        for name, value in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)):
            if value < 0:
                raise ValueError(f"{name}={value} must be at least 0 (0 turns it off)")
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha

    @property
    def active(self) -> bool:
        """Whether images are mixed at all."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) images and (B, K) targets -> mixed copies of both."""
        use_cutmix, u, v = torch.rand(3).tolist()
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or use_cutmix < 0.5)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        lam = float(torch.distributions.Beta(alpha, alpha, validate_args=False).sample().numpy())
        order = to_device(torch.randperm(len(images)), images.device)
        if cut:
            size = (images.shape[-2], images.shape[-1])
            return cutmix(images, targets, cutmix_box(size, lam, (u, v)), order)
        return mixup(images, targets, lam, order)
