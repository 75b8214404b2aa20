"""Losses of masked image modelling. Pure functions, computed in float32 whatever the precision of the prediction.

Legend: B batch, C channels, (H, W) pixels, p patch size, (h, w) patch grid, N = h * w patches.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

#: Added to the variance of a patch (MAE's reference implementation), so that a constant patch gives zeros and not NaN.
VARIANCE_EPS = 1e-6


def _grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    if image_size[0] % patch_size or image_size[1] % patch_size or min(image_size) < 1:
        near = tuple(max(1, round(n / patch_size)) * patch_size for n in image_size)
        raise ValueError(
            f"an image of {image_size[0]}x{image_size[1]} pixels does not divide into patches of {patch_size}; "
            f"use for example {near[0]}x{near[1]}"
        )
    return image_size[0] // patch_size, image_size[1] // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, N, p * p * C): patches in raster order, each as rows of pixels, channels last.

    Raises:
        ValueError: if H or W is not a multiple of the patch size.
    """
    b, c, height, width = images.shape
    h, w = _grid((height, width), patch_size)
    x = images.reshape(b, c, h, patch_size, w, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, patch_size * patch_size * c)


def unpatchify(patches: Tensor, patch_size: int, image_size: tuple[int, int]) -> Tensor:
    """(B, N, p * p * C) -> (B, C, H, W), the inverse of :func:`patchify`.

    Raises:
        ValueError: if the image is not a multiple of the patch size, or N or the patch length does not belong to it.
    """
    b, n, length = patches.shape
    h, w = _grid(image_size, patch_size)
    if n != h * w or length % (patch_size * patch_size):
        raise ValueError(
            f"{n} patches of {length} values are not an image of {image_size[0]}x{image_size[1]} pixels in patches of "
            f"{patch_size}: that takes {h * w} patches of a multiple of {patch_size * patch_size} values"
        )
    x = patches.reshape(b, h, w, patch_size, patch_size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, *image_size)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, (B, N, 1) float32 each.

    The variance is the unbiased one plus ``VARIANCE_EPS``, as in the reference.

    Raises:
        ValueError: for patches of a single value, which have no variance.
    """
    if patches.shape[-1] < 2:
        raise ValueError("a patch of one value has no variance; use norm_pix_loss=False or larger patches")
    patches = patches.float()
    mean = patches.mean(dim=-1, keepdim=True)
    var = (patches - mean).square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
    return mean, (var + VARIANCE_EPS).sqrt()


def masked_pixel_loss(prediction: Tensor, images: Tensor, mask: Tensor, norm_pix: bool) -> Tensor:
    """MAE's loss: squared error of masked patches, averaged (arXiv 2111.06377, section 3, "Reconstruction target").

    The slow form, with ``t`` a patch of :func:`patchify`, normalised by its own mean and deviation if ``norm_pix``::

        loss = sum_bn mask_bn mean_i (prediction_bni - t_bni)^2  /  sum_bn mask_bn

    Args:
        prediction: (B, N, p * p * C), any floating type.
        images: (B, C, H, W), normalised.
        mask: (B, N), 1 where a patch is masked, 0 where it is visible.
        norm_pix: predict each patch's values relative to its own mean and deviation.

    Returns:
        A float32 scalar; 0 (with a gradient of 0) if nothing is masked.
    """
    target = _target(patchify(images, _patch_size(prediction, images)), norm_pix)
    mask = mask.float()
    error = (prediction.float() - target).square().mean(dim=-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def hidden_pixel_loss(prediction: Tensor, images: Tensor, hidden: Tensor, norm_pix: bool) -> Tensor:
    """:func:`masked_pixel_loss` of a prediction that holds nothing but the masked patches.

    Args:
        prediction: (B, M, p * p * C), any floating type.
        images: (B, C, H, W), normalised.
        hidden: (B, M) int64 raster indices of the masked patches, as many in every image.
        norm_pix: as there.
    """
    patches = patchify(images, _patch_size(prediction, images))
    patches = patches.gather(1, hidden.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    return F.mse_loss(prediction.float(), _target(patches, norm_pix))


def _patch_size(prediction: Tensor, images: Tensor) -> int:
    return round((prediction.shape[-1] / images.shape[1]) ** 0.5)


def _target(patches: Tensor, norm_pix: bool) -> Tensor:
    patches = patches.float()
    if not norm_pix:
        return patches
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


def simmim_loss(prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """SimMIM's loss: absolute error of masked pixels, averaged (arXiv 2111.09886, section 3.4).

    The slow form, over pixels (y, x) and channels c::

        loss = sum_bcyx mask_byx |prediction_bcyx - images_bcyx|  /  (sum_byx mask_byx + 1e-5)  /  C

    Args:
        prediction: (B, C, H, W), any floating type.
        images: (B, C, H, W), normalised.
        mask: (B, H / m, W / m) for any m, 1 where a cell of m x m pixels is masked.

    Returns:
        A float32 scalar; 0 (with a gradient of 0) if nothing is masked.

    Raises:
        ValueError: if the images do not divide into the mask's cells.
    """
    c, height, width = images.shape[1:]
    rows, cols = mask.shape[1:]
    if height % rows or width % cols:
        raise ValueError(f"images of {height}x{width} pixels do not divide into a mask of {rows}x{cols} cells")
    cell = (height // rows, width // cols)
    error = (prediction.float() - images.float()).abs().sum(dim=1)
    error = error.reshape(-1, rows, cell[0], cols, cell[1]).sum(dim=(2, 4))
    mask = mask.float()
    return (error * mask).sum() / (mask.sum() * (cell[0] * cell[1]) + 1e-5) / c
