"""Images to patch tokens.

Legend: B batch, C channels, p patch size, (h, w) token grid, N tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.fast_path import is_open, is_plain
from visionzoo.layers.linear import linear


class PatchEmbed(nn.Module):
    """Cut an image into p x p patches and project each to D channels (arXiv 2010.11929, equation 1).

    The weight is a convolution's, ``proj.weight`` (D, C, p, p), but it is applied as one matrix product, so that
    only the patches that are asked for are computed. Whatever else stands in the convolution's place is called with the
    whole image.

    Args:
        patch_size: p, in pixels.
        in_chans: C.
        embed_dim: D.
        bias: off where a norm follows at once (CLIP).
        partial: what becomes of pixels that fill no whole patch: ``pad`` with zeros at the right and bottom
            (timm's ``dynamic_img_pad``), or ``crop`` (a convolution without padding: timm's default, big_vision).
    """

    def __init__(
        self, patch_size: int, in_chans: int, embed_dim: int, *, bias: bool = True, partial: str = "pad"
    ) -> None:
        super().__init__()
        if partial not in ("pad", "crop"):
            raise ValueError(f"partial={partial!r} must be 'pad' or 'crop'")
        self.patch_size = patch_size
        self.partial = partial
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) pixels -> (h, w) tokens."""
        p = self.patch_size
        if self.partial == "pad":
            return (image_size[0] + p - 1) // p, (image_size[1] + p - 1) // p  # ONNX rounds towards 0
        return image_size[0] // p, image_size[1] // p

    def fit(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h * p, w * p): what is no whole patch is filled up or cut off."""
        height, width = images.shape[2:]
        p = self.patch_size
        h, w = self.grid_size((height, width))
        if not is_open(height, width) and (h * p, w * p) == (height, width):
            return images
        return F.pad(images, (0, w * p - width, 0, h * p - height))  # a negative pad crops

    def patchify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h * w, C * p * p) in raster order, each patch channel first."""
        images = self.fit(images)
        b, c, height, width = images.shape
        p = self.patch_size
        h, w = height // p, width // p
        return images.reshape(b, c, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, c * p * p)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, N, D).

        Args:
            images: at least one patch high and wide.
            keep: (B, N) int64 raster indices; the other patches are never embedded. None for all.

        Raises:
            ValueError: for another number of channels, or an image lower or narrower than a patch.
        """
        in_chans = getattr(self.proj, "in_channels", images.shape[1])
        if images.shape[1] != in_chans:
            raise ValueError(
                f"got images with {images.shape[1]} channels, this model takes {in_chans}; "
                f"build it with in_chans={images.shape[1]}"
            )
        if min(images.shape[2:]) < self.patch_size:
            raise ValueError(
                f"got images of {images.shape[2]}x{images.shape[3]} pixels, smaller than a patch of {self.patch_size}; "
                f"enlarge them to {self.patch_size} pixels or more"
            )
        if not is_plain(self.proj, nn.Conv2d):
            return _visible(self.proj(self.fit(images)).flatten(2).mT, keep)
        return linear(_visible(self.patchify(images), keep), self.proj.weight.flatten(1), self.proj.bias)


def _visible(x: Tensor, keep: Tensor | None) -> Tensor:
    """Of the tokens (B, h * w, E) those that ``keep`` (B, N) names."""
    return x if keep is None else x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
