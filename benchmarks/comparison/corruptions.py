"""Corrupted images at five severities, from albumentations' own transforms. Nothing is left to chance.

They act on uint8 RGB images of the model's input size, before normalisation. Strengths follow ImageNet-C
(arXiv 1903.12261) where it has the same corruption. What ImageNet-C gives in pixels is a share of the edge here, so
that a severity means the same at 32 and at 224 pixels.

Legend: (H, W) pixels.
"""

from __future__ import annotations

import difflib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from visionzoo.data.keys import sample_key

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

SEVERITIES = (1, 2, 3, 4, 5)
Five = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Corruption:
    """One row of the table."""

    strengths: Five  #: at severities 1 to 5
    unit: str  #: what a strength is
    build: Callable[[Any, float, int], Any]  #: (albumentations, strength, edge in pixels) -> transform


def _odd(pixels: float) -> int:
    """The nearest odd kernel of at least 3 pixels."""
    return max(3, 2 * round((pixels - 1) / 2) + 1)


#: The default picks single pixels, which shifts the image, and how far depends on the size.
_SMOOTH = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        (0.08, 0.12, 0.18, 0.26, 0.38), "standard deviation, of 1",
        lambda A, s, _: A.GaussNoise(std_range=(s, s), p=1.0),
    ),
    "shot_noise": Corruption(
        (0.02, 0.04, 0.08, 0.2, 0.4), "variance at full brightness, of 1",
        lambda A, s, _: A.ShotNoise(scale_range=(s, s), p=1.0),
    ),
    "impulse_noise": Corruption(
        (0.03, 0.06, 0.09, 0.17, 0.27), "share of pixels set to black or white",
        lambda A, s, _: A.SaltAndPepper(amount=(s, s), salt_vs_pepper=(0.5, 0.5), p=1.0),
    ),
    "gaussian_blur": Corruption(
        (0.01, 0.015, 0.02, 0.028, 0.04), "sigma, of the edge",
        lambda A, s, edge: A.GaussianBlur(blur_limit=0, sigma_limit=(s * edge, s * edge), p=1.0),
    ),
    "motion_blur": Corruption(
        (0.09, 0.16, 0.22, 0.28, 0.35), "length, of the edge, as an odd number of pixels",
        lambda A, s, edge: A.MotionBlur(blur_limit=(_odd(s * edge), _odd(s * edge)), allow_shifted=False, p=1.0),
    ),
    "low_resolution": Corruption(
        (0.6, 0.5, 0.4, 0.3, 0.25), "resolution that is left, of 1",
        lambda A, s, _: A.Downscale(scale_range=(s, s), interpolation_pair=_SMOOTH, p=1.0),
    ),
    "jpeg": Corruption(
        (25, 18, 15, 10, 7), "JPEG quality",
        lambda A, s, _: A.ImageCompression(quality_range=(int(s), int(s)), p=1.0),
    ),
    "brightness": Corruption(
        (0.1, 0.2, 0.3, 0.4, 0.5), "added, of 1",
        lambda A, s, _: A.RandomBrightnessContrast(brightness_limit=(s, s), contrast_limit=(0, 0), p=1.0),
    ),
    "contrast": Corruption(
        (0.4, 0.3, 0.2, 0.1, 0.05), "contrast that is left, of 1",
        lambda A, s, _: A.ColorJitter((1, 1), (s, s), (1, 1), (0, 0), p=1.0),
    ),
    "desaturate": Corruption(
        (0.7, 0.5, 0.3, 0.15, 0.0), "colour that is left, of 1",
        lambda A, s, _: A.ColorJitter((1, 1), (1, 1), (s, s), (0, 0), p=1.0),
    ),
    "rotation": Corruption(
        (8, 16, 24, 32, 45), "degrees, either way",
        lambda A, s, _: A.OneOf([A.Affine(rotate=(d, d), fill=128, p=1.0) for d in (s, -s)], p=1.0),
    ),
    "occlusion": Corruption(
        (0.2, 0.3, 0.4, 0.5, 0.6), "edge of a grey square, of the image's",
        lambda A, s, _: A.CoarseDropout((1, 1), (s, s), (s, s), fill=128, p=1.0),
    ),
}  # fmt: skip


def check_names(names: list[str]) -> None:
    """Raises ValueError for a name that is not in the table; the message names near ones."""
    for name in names:
        if name not in CORRUPTIONS:
            near = difflib.get_close_matches(name, CORRUPTIONS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(CORRUPTIONS)}"
            raise ValueError(f"there is no corruption {name!r}; {hint}")


class Corrupter:
    """One corruption at one severity, for images of one size."""

    def __init__(self, name: str, severity: int, edge: int) -> None:
        """
        Args:
            name: a key of :data:`CORRUPTIONS`.
            severity: 1 to 5.
            edge: longer edge of the images, in pixels.

        Raises:
            ValueError: for a name or a severity that does not exist.
        """
        import albumentations as A

        check_names([name])
        if severity not in SEVERITIES:
            raise ValueError(f"severity={severity} must be one of {SEVERITIES}")
        row = CORRUPTIONS[name]
        self._place = list(CORRUPTIONS).index(name)
        self._transform = A.Compose([row.build(A, row.strengths[severity - 1], edge)])

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        """(H, W, 3) uint8 -> the same shape. What is random depends on the corruption and ``index`` only."""
        key = sample_key(self._place, index)
        self._transform.set_random_state(np.random.default_rng(key), random.Random(key))
        return self._transform(image=image)["image"]
