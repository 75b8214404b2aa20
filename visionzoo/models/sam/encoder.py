"""Image encoders of SAM: Meta's own, and any other backbone with a neck.

Legend: B batch, (H, W) pixels, C neck width, (h, w) embedding grid.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.vitdet import LayerNorm2d, ViTDet
from visionzoo.layers.graft import graft

#: Pixels per cell of Meta's embedding; masks come at a quarter of that.
STRIDE = 16
WIDTH = 256

if TYPE_CHECKING:
    _Base = ViTDet
else:
    _Base = object


class ImageEncoderViT(_Base):
    """SAM's own encoder, whose neck is part of the backbone: images (B, 3, H, W) -> (B, C, h, w)."""

    @property
    def img_size(self) -> int:
        """The longer side of the input, as Meta's predictor asks for it."""
        return max(self.image_size)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3, H, W) normalised -> (B, E, h, w)."""
        return self.forward_features(images.to(next(self.parameters()).dtype))

    def maps(self, images: Tensor) -> list[Tensor]:
        """What a frozen encoder gives: the embedding itself, (B, C, h, w)."""
        return [self(images)]

    def join(self, maps: list[Tensor], images: Tensor) -> Tensor:  # noqa: ARG002
        """:meth:`maps` to the embedding (B, E, h, w)."""
        return maps[0]


class ConvStem(nn.Module):
    """Convolutions on the pixels themselves, beside a backbone whose patches blur edges: (B, 3, H, W) -> (B, C, h, w).

    Two of 3 x 3 at half the resolution (the second halves again, where the stride is a multiple of four), then one
    that takes each cell whole, so that its channels hold where in the cell an edge lies.

    Args:
        in_chans: of the images.
        stride: pixels per cell.
        dim: C.
    """

    WIDTH = 32

    def __init__(self, in_chans: int, stride: int, dim: int) -> None:
        super().__init__()
        halves = [2 if stride % 2 == 0 else 1, 2 if stride % 4 == 0 else 1]
        rest = stride // (halves[0] * halves[1])
        widths = (in_chans, self.WIDTH, self.WIDTH)
        layers: list[nn.Module] = []
        for (have, width), step in zip(pairwise(widths), halves, strict=True):
            layers += [nn.Conv2d(have, width, 3, stride=step, padding=1, bias=False), LayerNorm2d(width, eps=1e-6)]
            layers += [nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(self.WIDTH, dim, rest, stride=rest, bias=False))
        self.norm = LayerNorm2d(dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, C, h, w)."""
        return self.norm(self.layers(images))


class Neck(nn.Module):
    """Feature maps of any widths and strides, summed on one grid: -> (B, C, h, w).

    One map goes through the layers of SAM's neck. Several are first brought to C channels each, resized to the grid
    and summed, as in a feature pyramid network (arXiv 1612.03144) without its top-down path.

    Args:
        widths: of the maps.
        grid_size: (h, w).
        dim: C.
        stem: of the pixels, whose map is one more.
    """

    def __init__(
        self, widths: list[int], grid_size: tuple[int, int], dim: int = WIDTH, stem: ConvStem | None = None
    ) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, kernel_size=1, bias=False), LayerNorm2d(dim, eps=1e-6))
            for width in widths
        )
        self.mix = nn.Sequential(nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False), LayerNorm2d(dim, eps=1e-6))
        self.stem = stem

    def forward(self, maps: list[Tensor], images: Tensor) -> Tensor:
        """Maps (B, C_i, h_i, w_i), and the images (B, 3, H, W) for a stem -> (B, E, h, w): each brought to the grid,
        summed and mixed."""
        total = None if self.stem is None else self.stem(images.to(next(self.mix.parameters()).dtype))
        for layer, x in zip(self.lateral, maps, strict=True):
            x = self._fit(layer(self.reduce(x)))  # the 1 x 1 convolution comes where there are fewer pixels
            total = x if total is None else total + x
        return self.mix(total)

    def reduce(self, x: Tensor) -> Tensor:
        """A finer map (B, C, h, w) brought to the grid; any other as it is."""
        return self._fit(x) if x.shape[-1] > self.grid_size[1] else x

    def _fit(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) == self.grid_size:
            return x
        # Without antialiasing, what a finer map holds between the sampled cells would be lost. On a CPU there is no
        # antialiasing in bfloat16.
        full = F.interpolate(x.float(), size=self.grid_size, mode="bilinear", align_corners=False, antialias=True)
        return full.to(x.dtype)


class NeckedEncoder(nn.Module):
    """Any backbone with a neck: images (B, 3, H, W) -> (B, C, h, w).

    Maps of all strides are read where the backbone has a pyramid, otherwise its last grid.

    Args:
        trunk: the backbone.
        stride: pixels per cell of the embedding; None for 16, or the trunk's own where that is finer.
        dim: C.
        conv_stem: whether the neck also reads the pixels, see :class:`ConvStem`.

    Raises:
        ValueError: for a stride that the image size is no multiple of.
    """

    def __init__(self, trunk: Backbone, stride: int | None = None, dim: int = WIDTH, conv_stem: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.image_size = trunk.image_size
        # A ViT's levels all have one stride, so that its last grid says as much.
        self.levels = [i for i, level in enumerate(trunk.pyramid_levels) if self._is_last(i, level.stride)]
        if len(self.levels) == 1:
            self.levels = []
        widths = [trunk.pyramid_levels[i].channels for i in self.levels] or [trunk.grid_dim]
        self.stride = stride or min(STRIDE, trunk.stride)
        h, w = self.image_size
        if self.stride < 1 or h % self.stride or w % self.stride:
            raise ValueError(
                f"an image of {h}x{w} pixels does not divide into cells of {self.stride}; "
                "choose another image_size or embedding_stride"
            )
        self.grid_size = (h // self.stride, w // self.stride)
        stem = ConvStem(trunk.in_chans, self.stride, dim) if conv_stem else None
        self.neck = Neck(widths, self.grid_size, dim, stem)
        self._freeze_unused()

    def _is_last(self, index: int, stride: int) -> bool:
        return all(level.stride != stride for level in self.trunk.pyramid_levels[index + 1 :])

    def _freeze_unused(self) -> None:
        """What the trunk has for pooling has no part in this; distributed training stops at such parameters."""
        if next(self.parameters()).is_meta:
            return  # an outline, which is not trained
        ghosts = {k: torch.empty_like(p, device="meta").requires_grad_() for k, p in self.named_parameters()}
        buffers = {k: torch.empty_like(b, device="meta") for k, b in self.named_buffers()}
        images = torch.empty(2, self.trunk.in_chans, *self.image_size, device="meta")
        with torch.inference_mode(False), torch.enable_grad():
            functional_call(self, {**ghosts, **buffers}, (images,)).sum().backward()
        for name, parameter in self.named_parameters():
            if ghosts[name].grad is None:
                parameter.requires_grad_(False)

    @property
    def img_size(self) -> int:
        """The longer side of the input, as Meta's predictor asks for it."""
        return max(self.image_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, E, h, w)."""
        return self.join(self.maps(images), images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """What a frozen trunk gives for (B, 3, H, W), on grids no finer than the embedding's; the neck still has to
        learn."""
        images = images.to(next(self.neck.parameters()).dtype)
        if not self.levels:
            maps = [self.trunk(images).grid]
        else:
            pyramid = self.trunk.pyramid(images)
            maps = [pyramid[i] for i in self.levels]
        return [self.neck.reduce(x) for x in maps]

    def join(self, maps: list[Tensor], images: Tensor) -> Tensor:
        """:meth:`maps` to the embedding, (B, C, h, w); a stem reads the normalised images."""
        return self.neck(maps, images)


def make_encoder(
    backbone: Backbone, stride: int | None = None, dim: int = WIDTH, conv_stem: bool = False
) -> ImageEncoderViT | NeckedEncoder:
    """SAM's own encoder as it is, any other with a neck.

    Raises:
        ValueError: for a stride that does not fit.
    """
    if isinstance(backbone, ViTDet) and backbone.config.neck == WIDTH:
        if conv_stem:
            raise ValueError(f"conv_stem: {backbone.name} has a neck of its own, without room for one")
        if dim != WIDTH:
            raise ValueError(f"decoder_dim={dim}: {backbone.name} has a neck of its own, of width {WIDTH}")
        if stride not in (None, backbone.stride):
            raise ValueError(f"embedding_stride={stride}: {backbone.name} has a neck of its own, of {backbone.stride}")
        h, w = backbone.image_size
        if h % backbone.stride or w % backbone.stride:
            raise ValueError(f"image_size={h}x{w} must be a multiple of {backbone.stride}, the patches of this encoder")
        return graft(backbone, ImageEncoderViT)
    return NeckedEncoder(backbone, stride, dim, conv_stem)
