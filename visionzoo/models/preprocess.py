"""Pixels to a model's input, on the device the pixels are on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from visionzoo.types import Preprocess


def as_grey(preprocess: Preprocess) -> Preprocess:
    """The same for grey images: the means over the channels. With a mean of one value, data are read as grey."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    pad = preprocess.pad_value
    return replace(
        preprocess,
        mean=(mean(preprocess.mean),),
        std=(mean(preprocess.std),),
        pad_value=pad if isinstance(pad, int) else round(mean(pad)),
    )


class Normalize(nn.Module):
    """(B, C, H, W) uint8 in 0..255 -> float: ``(x / value_scale - mean) / std``, in one multiply and one add.

    Mean and standard deviation are repeated for models with more channels than the spec names. The constants are not
    part of the state dict: they belong to :class:`Preprocess`, which is saved beside the weights.

    Args:
        preprocess: the spec.
        in_chans: channels of the images; None for as many as the spec has.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, preprocess: Preprocess, in_chans: int | None = None) -> None:
        super().__init__()
        channels = in_chans or len(preprocess.mean)
        repeats = -(-channels // len(preprocess.mean))
        mean = torch.tensor(preprocess.mean, dtype=torch.float64).repeat(repeats)[:channels]
        std = torch.tensor(preprocess.std, dtype=torch.float64).repeat(repeats)[:channels]
        scale = 1.0 / (std * preprocess.value_scale)
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 in 0..255 -> the same in float, scaled and shifted per channel. Raises ValueError for
        another type."""
        if images.dtype != torch.uint8:
            raise ValueError(
                f"Normalize takes uint8 pixels in 0..255, got {images.dtype}; pass images as they are decoded"
            )
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return images.to(self.scale.dtype) * self.scale + self.shift
        # The same numbers image by image: a batch is larger than a core's cache, and three passes over it are slow.
        out = torch.empty(images.shape, dtype=self.scale.dtype, device=images.device)
        for image, pixels in zip(out, images, strict=True):
            image.copy_(pixels).mul_(self.scale[0]).add_(self.shift[0])
        return out

    def invert(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> uint8 in 0..255, rounded and clipped."""
        return ((x - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
