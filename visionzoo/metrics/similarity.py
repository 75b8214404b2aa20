"""Whether two layers hold the same: centred kernel alignment of their features on the same images."""

from __future__ import annotations

from torch import Tensor


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear CKA (Kornblith et al. 2019, arXiv 1905.00414, section 3), of the unbiased HSIC (Song et al. 2012).

    1 is the same up to rotation and scale, 0 is nothing in common. Without the correction, wide layers on few images
    look alike whatever they hold (arXiv 2010.15327, section 3).

    Args:
        one: (N, D) features of N images.
        other: (N, E) features of the same images.

    Raises:
        ValueError: for other shapes, fewer than 4 images, or features that do not vary.
    """
    if one.ndim != 2 or other.ndim != 2 or len(one) != len(other) or len(one) < 4:
        raise ValueError(f"features {tuple(one.shape)} and {tuple(other.shape)} must be (N, D) and (N, E) with N >= 4")
    kernels = [_kernel(x) for x in (one, other)]
    own = [_hsic(k, k) for k in kernels]
    if min(own) <= 0:
        raise ValueError("features that do not vary between images have no CKA")
    return _hsic(*kernels) / (own[0] * own[1]) ** 0.5


def _kernel(x: Tensor) -> Tensor:
    centred = x.double() - x.double().mean(0)
    kernel = centred @ centred.T
    return kernel.fill_diagonal_(0)


def _hsic(k: Tensor, other: Tensor) -> float:
    n = len(k)
    parts = (k * other).sum() + k.sum() * other.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ other.sum(0))
    return float(parts) / (n * (n - 3))
