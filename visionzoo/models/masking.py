"""What the masked image models have in common: which patches are masked, and what comes out.

Legend: B batch, C channels, (H, W) pixels, p patch size, N patches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visionzoo.losses.masked import patch_statistics, patchify, unpatchify


class MaskedOutput(NamedTuple):
    """What a masked image model answers for a batch."""

    loss: Tensor  #: float32 scalar
    prediction: Tensor  #: (B, N, p * p * C), patches in raster order, each as rows of pixels, channels last
    mask: Tensor  #: (B, N) float32, 1 where a patch was masked


class Reconstruction(NamedTuple):
    """Pictures of what a masked image model makes of a batch: (B, C, H, W) float32, normalised like its input."""

    original: Tensor
    masked: Tensor  #: masked patches are 0, which is the mean colour
    reconstruction: Tensor  #: every patch as predicted
    pasted: Tensor  #: masked patches as predicted, the others as they are
    borrows_statistics: bool  #: the prediction was shifted and scaled by each target patch's own mean and deviation

    @property
    def note(self) -> str:
        """A line to print under the pictures; empty where nothing needs saying."""
        if not self.borrows_statistics:
            return ""
        return "each patch's mean and contrast are taken from the original: the model predicts normalised patches"


class Masking(NamedTuple):
    """Which patches of each image are visible."""

    order: Tensor  #: (B, N) int64 raster indices in the order of the noise: visible patches first
    visible: int  #: n
    place: Tensor  #: (B, N) int64, the inverse of ``order``
    mask: Tensor  #: (B, N) float32 in raster order, 1 where a patch is masked

    @property
    def keep(self) -> Tensor:
        """(B, n) int64 raster indices of visible patches."""
        return self.order[:, : self.visible]

    @property
    def hidden(self) -> Tensor:
        """(B, N - n) int64 raster indices of masked patches."""
        return self.order[:, self.visible :]


def check_ratio(mask_ratio: float, usual: str) -> None:
    """Raises ValueError unless the ratio is inside (0, 1); ``usual`` is the paper's."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} must be above 0 and below 1; the paper uses {usual}")


def draw_noise(images: Tensor, patches: int) -> Tensor:
    """Uniform noise (B, N) in [0, 1) on the device of the images, float32 whatever their precision."""
    return torch.rand(images.shape[0], patches, device=images.device)


def random_masking(noise: Tensor, visible: int) -> Masking:
    """Keep the ``visible`` patches of each image with the least noise (arXiv 2111.06377, "Simple implementation").

    Args:
        noise: (B, N).
        visible: n, from 1 to N - 1.
    """
    order = noise.argsort(dim=1, stable=True)
    place = torch.empty_like(order)
    place.scatter_(1, order, torch.arange(noise.shape[1], device=noise.device).expand_as(order))
    return Masking(order, visible, place, (place >= visible).float())


def first_stage(encoder: Any) -> tuple[int, int]:
    """Side in pixels, and width, of the patch embeddings that a mask token replaces, of a backbone with the capability
    ``masked_image``."""
    return encoder.patch_embed.patch_size, encoder.embed_dim


def norm_after_pool(encoder: nn.Module) -> nn.Module | None:
    """The last norm of backbones that apply it after averaging. Here it norms every token, for what reads them."""
    norm = getattr(encoder, "fc_norm", None)
    return None if isinstance(norm, nn.Identity) else norm


def freeze_pool(encoder: nn.Module) -> None:
    """Attention pooling has no part in this; distributed training stops at parameters that never get a gradient."""
    pool = getattr(encoder, "attn_pool", None)
    if pool is not None:
        pool.requires_grad_(False)


def check_noise(noise: Tensor, batch: int, patches: int) -> None:
    """Raises ValueError unless ``noise`` is (batch, patches): one value for each patch of each image."""
    if tuple(noise.shape) != (batch, patches):
        raise ValueError(f"noise has the shape {tuple(noise.shape)}; these images need ({batch}, {patches})")


def reconstruct(images: Tensor, output: MaskedOutput, patch_size: int, *, norm_pix: bool) -> Reconstruction:
    """Put a prediction back into pictures: images (B, C, H, W) and patches (B, N, p p C) -> four of (B, C, H, W)."""
    size = (images.shape[2], images.shape[3])
    patches, prediction = patchify(images.float(), patch_size), output.prediction.float()
    if norm_pix:
        mean, std = patch_statistics(patches)
        prediction = prediction * std + mean
    mask = output.mask.unsqueeze(-1)
    return Reconstruction(
        original=unpatchify(patches, patch_size, size),
        masked=unpatchify(patches * (1 - mask), patch_size, size),
        reconstruction=unpatchify(prediction, patch_size, size),
        pasted=unpatchify(torch.where(mask > 0, prediction, patches), patch_size, size),
        borrows_statistics=norm_pix,
    )
