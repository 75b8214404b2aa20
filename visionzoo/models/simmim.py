"""SimMIM (arXiv 2111.09886): masked image modelling for backbones that see the whole image, Swin foremost.

Masked patches are replaced by a token after the patch embedding; one linear layer predicts their pixels. The keys are
``encoder.*``, the backbone's own, ``mask_token`` and ``decoder.*``.

Legend: B batch, C channels, (H, W) pixels, m side of a mask unit, N mask units, D width of the first stage.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.backbones import create_backbone
from visionzoo.backbones.base import Backbone
from visionzoo.losses.masked import patchify, simmim_loss
from visionzoo.models.encoder_model import EncoderModel
from visionzoo.models.masking import (
    MaskedOutput,
    Reconstruction,
    check_noise,
    check_ratio,
    draw_noise,
    first_stage,
    freeze_pool,
    norm_after_pool,
    random_masking,
    reconstruct,
)
from visionzoo.registry import require_capability
from visionzoo.weights import install_load_hook, load_weights


class SimMIM(EncoderModel):
    """A backbone that learns to repair images. Made by :func:`create_simmim`.

    Args:
        encoder: a backbone with the capability ``masked_image``.
        mask_patch_size: m in pixels, a multiple of the encoder's patch.
        mask_ratio: share of the units that are masked, in (0, 1).
    """

    weights_family = "simmim"
    norm_pix_loss = False  # plain pixels are predicted, section 3.4

    def __init__(self, encoder: Backbone, *, mask_patch_size: int, mask_ratio: float) -> None:
        super().__init__(encoder)
        check_ratio(mask_ratio, "0.6")
        self.stage_patch, width = first_stage(encoder)
        if mask_patch_size < 1 or mask_patch_size % self.stage_patch:
            raise ValueError(
                f"mask_patch_size={mask_patch_size} must be a multiple of the patches of {encoder.name}, "
                f"which are {self.stage_patch} pixels"
            )
        self.patch_size = mask_patch_size
        self.mask_ratio = mask_ratio
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Conv2d(encoder.num_features, encoder.stride**2 * encoder.in_chans, kernel_size=1)
        self.num_visible(self.grid_of(encoder.image_size))

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of what is masked at once. Raises ValueError for a size that does not divide."""
        unit = math.lcm(self.patch_size, self.encoder.stride)
        if image_size[0] % unit or image_size[1] % unit:
            raise ValueError(
                f"an image of {image_size[0]}x{image_size[1]} pixels does not divide into mask units of "
                f"{self.patch_size} pixels and the encoder's stride of {self.encoder.stride}; use multiples of {unit}"
            )
        return image_size[0] // self.patch_size, image_size[1] // self.patch_size

    def num_visible(self, grid_size: tuple[int, int]) -> int:
        """How many units of a grid stay visible; ``ceil(N * mask_ratio)`` are masked, as the reference rounds it.

        Raises:
            ValueError: if that is none of them, or all.
        """
        units = grid_size[0] * grid_size[1]
        visible = units - math.ceil(units * self.mask_ratio)
        if visible == 0:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} leaves no visible unit of {units} ({grid_size[0]}x{grid_size[1]}); "
                "use a lower ratio, larger images or a smaller mask_patch_size"
            )
        return visible

    def forward(self, images: Tensor, noise: Tensor | None = None) -> MaskedOutput:
        """(B, C, H, W) normalised images -> loss, prediction and mask, in patches of the mask's units.

        Args:
            images: H and W multiples of ``mask_patch_size`` and of the encoder's stride.
            noise: (B, N); the units with the least noise stay visible. None draws it anew.

        Raises:
            ValueError: for images that do not divide so, or so small that the ratio leaves none to see, or noise of
                another shape.
        """
        size = (images.shape[2], images.shape[3])
        rows, cols = self.grid_of(size)
        visible = self.num_visible((rows, cols))
        if noise is None:
            noise = draw_noise(images, rows * cols)
        check_noise(noise, images.shape[0], rows * cols)
        mask = random_masking(noise, visible).mask
        cells = mask.view(-1, rows, cols)
        repeat = self.patch_size // self.stage_patch
        fine = cells.bool().repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        features = self.encoder.forward_features(images, mask=fine, mask_token=self.mask_token)
        norm = norm_after_pool(self.encoder)
        grid, _ = self.encoder.split(features if norm is None else norm(features), size)
        pixels = F.pixel_shuffle(self.decoder(grid), self.encoder.stride)
        return MaskedOutput(simmim_loss(pixels, images, cells), patchify(pixels, self.patch_size), mask)

    def loss(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss of :meth:`forward`, a float32 scalar."""
        return self(images, noise).loss

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Mask, predict and put back together: (B, C, H, W) -> four pictures of the same shape."""
        return reconstruct(images, self(images, noise), self.patch_size, norm_pix=False)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed: tokens and position tables."""
        return super().no_weight_decay() | {"mask_token"}


def create_simmim(
    backbone: str = "swin_tiny_patch4_window7_224",
    *,
    weights: Any = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    mask_patch_size: int = 32,
    mask_ratio: float = 0.6,
    drop_path: float = 0.0,
    in_chans_policy: str | None = None,
) -> SimMIM:
    """Build a SimMIM model.

    Args:
        backbone: a registered backbone with the capability ``masked_image``.
        weights: None for random weights; otherwise a source for :func:`visionzoo.load_weights`.
        image_size: pixels, one number or (height, width); None for the size the backbone was made for.
        in_chans: C.
        mask_patch_size: m in pixels; images are multiples of it.
        mask_ratio: share of the units that are masked.
        drop_path: stochastic-depth rate of the encoder's last block.
        in_chans_policy: see :func:`visionzoo.load_weights`.

    Raises:
        ValueError: for an unknown backbone, one that cannot take a mask token (all CNNs), a mask ratio outside (0, 1)
            or one that leaves no visible unit, sizes that do not divide, or unfitting weights.
    """
    check_ratio(mask_ratio, "0.6")
    encoder = create_backbone(backbone, image_size=image_size, in_chans=in_chans, drop_path=drop_path)
    require_capability(encoder, "masked_image", "SimMIM")
    freeze_pool(encoder)
    model = SimMIM(encoder, mask_patch_size=mask_patch_size, mask_ratio=mask_ratio)
    model.architecture = {
        "backbone": backbone,
        "image_size": list(image_size) if isinstance(image_size, tuple) else image_size,
        "in_chans": in_chans,
        "mask_patch_size": mask_patch_size,
        "mask_ratio": mask_ratio,
        "drop_path": drop_path,
    }
    install_load_hook(model)
    if weights is not None:
        load_weights(model, weights, in_chans_policy=in_chans_policy)
    return model
