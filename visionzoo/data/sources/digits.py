"""The built-in set ``digits``: scikit-learn's 1,797 real handwritten digits (UCI, 8x8 pixels), no download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from visionzoo.data.images import ImageInput
from visionzoo.data.sources.base import Source

#: Pixels per edge, four times the original's.
SIZE = 32


class DigitsSource(Source):
    """All digits, white on black, enlarged from 8x8 to 32x32 by bicubic interpolation."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), stored in 0..16
        self.targets = digits.target.astype(np.int64)
        self.classes = tuple(str(d) for d in range(10))

    def sample_id(self, i: int) -> str:
        """``digits:`` and the position."""
        return f"digits:{i}"

    def raw(self, i: int) -> ImageInput:
        """A digit, enlarged from 8 x 8 pixels."""
        return Image.fromarray(self._pixels[i]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
