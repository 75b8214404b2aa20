"""From pixels of an image to pixels of a model's input: the picture, points and boxes.

Legend: (H, W) the model's input, (H', W') the resized image, (height, width) the image itself.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def fitted_size(original: tuple[int, int], model: tuple[int, int]) -> tuple[int, int]:
    """The size of an image resized to fit into the model's input, aspect ratio kept: all are (height, width)."""
    scale = min(model[0] / original[0], model[1] / original[1])
    height, width = (min(max(int(side * scale + 0.5), 1), limit) for side, limit in zip(original, model, strict=True))
    return height, width


def resize_coords(coords: np.ndarray, original: tuple[int, int], resized: tuple[int, int]) -> np.ndarray:
    """(..., 2) points (x, y) in pixels of an image -> in pixels of the resized image, float64."""
    return np.asarray(coords, dtype=np.float64) * (resized[1] / original[1], resized[0] / original[0])


def resize_picture(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """(H', W', 3) uint8."""
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


class ResizeToModel:
    """What Meta's programs call as ``predictor.transform``, with the methods of their ``ResizeLongestSide``.

    Args:
        model_size: (H, W). Meta's models are square; images fit into any other as well.
    """

    def __init__(self, model_size: tuple[int, int]) -> None:
        self.model_size = model_size
        self.target_length = max(model_size)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8 -> (H', W', 3) uint8, as the predictor resizes it."""
        return resize_picture(Image.fromarray(image), self._resized(image.shape[:2]))

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        """(..., 2) points (x, y) in pixels of an image of (height, width) -> in pixels of the resized one, float64."""
        return resize_coords(coords, (original_size[0], original_size[1]), self._resized(original_size))

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        """(N, 4) boxes x0, y0, x1, y1, likewise."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """(B, C, height, width) float -> (B, C, H', W'). Antialiased, yet not to the last level what PIL gives."""
        size = self._resized(image.shape[-2:])
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """:meth:`apply_coords` of a tensor (..., 2) as (x, y) in pixels, float32."""
        (height, width), (h, w) = original_size, self._resized(original_size)
        return coords.float() * torch.tensor((w / width, h / height), device=coords.device)

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """:meth:`apply_boxes` of a tensor (N, 4) as (x1, y1, x2, y2) in pixels, float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """(H', W') of an image whose longer side becomes ``long_side_length``."""
        return fitted_size((oldh, oldw), (long_side_length, long_side_length))

    def _resized(self, size: tuple[int, ...]) -> tuple[int, int]:
        return fitted_size((int(size[0]), int(size[1])), self.model_size)
