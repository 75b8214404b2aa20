"""From a PIL image to the uint8 tensor that travels to the device. Normalisation happens there.

:class:`EvalTransform` gives timm's pixels exactly, since it makes the same PIL calls. :class:`TrainTransform` draws
geometry and colour with albumentations; the crop's box is albumentations' too, but its pixels are resampled by PIL:
OpenCV's cubic is not antialiased and differs from what the model sees in evaluation by up to 78 levels.

Legend: C channels, (H, W) the model's input.
"""

from __future__ import annotations

import functools
import math
import random

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzoo.data.augment import AugmentOptions, build_augment, draw_box
from visionzoo.data.images import ImageInput, open_crop, open_image, open_region
from visionzoo.types import Preprocess

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

#: For ``decode="fast"``, where an edge grows. None of these is antialiased: an edge that shrinks is averaged instead.
_OPENCV_RESAMPLING = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "box": cv2.INTER_AREA,
    "hamming": cv2.INTER_LINEAR,
}

#: A resized image of more pixels than this is cropped before it is resized: a 1 x 60,000 image would grow to gigabytes.
_LARGEST_RESIZED = 64 * 2**20


#: (left to right, upside down) to OpenCV's code.
_FLIP = {(False, False): None, (True, False): 1, (False, True): 0, (True, True): -1}


def to_tensor(image: Image.Image | np.ndarray, channels: int, flip: int | None = None) -> Tensor:
    """(C, H, W) uint8 of an RGB image; with one channel, its luma (ITU-R 601, as PIL's "L").

    Args:
        image: RGB, or (H, W, 3 or 4) uint8, of which a fourth channel is not used.
        channels: 1 or 3.
        flip: OpenCV's code of a mirror image; None for none.
    """
    if channels == 1:
        grey = (image if isinstance(image, Image.Image) else Image.fromarray(_three_channels(image))).convert("L")
        return torch.from_numpy(_flipped(np.array(grey), flip))[None]
    # Plane by plane. A permuted copy is the same, but torch and NumPy make it one byte at a time.
    if isinstance(image, Image.Image):
        size = image.height, image.width
        parts = [np.frombuffer(image.tobytes("raw", band), dtype=np.uint8).reshape(size) for band in "RGB"]
    else:
        parts = [np.asarray(part) for part in cv2.split(image)[:3]]
    planes = np.empty((3, *parts[0].shape), dtype=np.uint8)
    for plane, part in zip(planes, parts, strict=True):
        plane[:] = _flipped(part, flip)
    return torch.from_numpy(planes)


def _flipped(pixels: np.ndarray, flip: int | None) -> np.ndarray:
    return pixels if flip is None else cv2.flip(pixels, flip)


def _three_channels(image: Image.Image | np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of its own."""
    pixels = np.array(image)
    return pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[:, :, :3])


def _fast_resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """(h, w, C) uint8 -> ``size`` (width, height), by OpenCV; never aliased, whatever the ratio of each edge."""
    if interpolation == "nearest":
        return cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST)
    height, width = pixels.shape[:2]
    # OpenCV averages areas only where no edge grows
    smaller = min(width, size[0]), min(height, size[1])
    if smaller != (width, height):
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    return pixels if smaller == size else cv2.resize(pixels, size, interpolation=_OPENCV_RESAMPLING[interpolation])


def _channels(preprocess: Preprocess) -> int:
    channels = len(preprocess.mean)
    if channels not in (1, 3):
        raise ValueError(f"images have 3 channels (or 1, grey), but Preprocess.mean has {channels} values")
    return channels


class EvalTransform:
    """What a model sees in evaluation: resize, then crop or pad. Equal to timm's evaluation transform."""

    def __init__(self, preprocess: Preprocess) -> None:
        """
        Args:
            preprocess: the model's own; ``mean`` of one value means grey images.

        Raises:
            ValueError: for a number of channels other than 1 or 3.
        """
        self.preprocess = preprocess
        self.channels = _channels(preprocess)
        self.resample = RESAMPLING[preprocess.interpolation]

    def __call__(self, image: ImageInput, key: int = 0) -> Tensor:  # noqa: ARG002
        """(C, H, W) uint8 of an image, decoded or not. ``key`` is for training transforms and changes nothing here.

        Raises:
            UnreadableImage: as :func:`visionzoo.data.images.open_image`.
        """
        return to_tensor(self.fit(open_image(image)), self.channels)

    def resized_size(self, old_height: int, old_width: int) -> tuple[int, int]:
        """(height, width) that an image is resized to, before it is cropped or padded."""
        spec = self.preprocess
        height, width = spec.image_size
        # timm resizes to the input size divided by the crop share, rounded down.
        edges = math.floor(height / spec.crop_pct), math.floor(width / spec.crop_pct)
        if spec.resize_mode == "squash":
            new_height, new_width = edges
        elif spec.resize_mode == "shortest" and edges[0] == edges[1]:
            # torchvision's rule for one number: the longer edge is truncated, not rounded.
            short, long = sorted((old_height, old_width))
            longer = int(edges[0] * long / short)
            new_width, new_height = (edges[0], longer) if old_width <= old_height else (longer, edges[0])
        else:
            ratios = old_height / edges[0], old_width / edges[1]
            ratio = max(ratios) if spec.resize_mode == "longest" else min(ratios)
            # Meta rounds halves up, timm (Python) to even.
            to_int = (lambda x: int(x + 0.5)) if spec.pad_anchor == "top_left" else round
            new_height, new_width = to_int(old_height / ratio), to_int(old_width / ratio)
        return max(new_height, 1), max(new_width, 1)

    def fit(self, image: Image.Image) -> Image.Image:
        """The image brought to (H, W), as PIL."""
        new_height, new_width = self.resized_size(image.height, image.width)
        if new_height * new_width > _LARGEST_RESIZED:
            return self._crop_first(image, new_height, new_width)
        return self._crop_or_pad(self._resize(image, (new_width, new_height)))

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image if image.size == size else image.resize(size, self.resample)

    def _crop_or_pad(self, image: Image.Image) -> Image.Image:
        """Centre crop; an edge that is too short is padded first."""
        height, width = self.preprocess.image_size
        missing = max(width - image.width, 0), max(height - image.height, 0)
        if any(missing):
            at = (0, 0) if self.preprocess.pad_anchor == "top_left" else (missing[0] // 2, missing[1] // 2)
            size = image.width + missing[0], image.height + missing[1]
            canvas = Image.new("RGB", size, _rgb(self.preprocess.pad_value))
            canvas.paste(image, at)
            image = canvas
        left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
        if (left, top) == (0, 0) and image.size == (width, height):
            return image
        return image.crop((left, top, left + width, top + height))

    def _crop_first(self, image: Image.Image, new_height: int, new_width: int) -> Image.Image:
        """The same crop, resampled from the part of the image that it shows, without the whole resized image."""
        height, width = self.preprocess.image_size
        size = min(width, new_width), min(height, new_height)
        left, top = round((new_width - size[0]) / 2.0), round((new_height - size[1]) / 2.0)
        x, y = image.width / new_width, image.height / new_height
        box = (left * x, top * y, (left + size[0]) * x, (top + size[1]) * y)
        return self._crop_or_pad(image.resize(size, self.resample, box=box))


def _rgb(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    if isinstance(value, int):
        return value, value, value
    return (value * 3)[:3] if len(value) == 1 else (value[0], value[1], value[2])


class TrainTransform:
    """A random view of an image for training, (C, H, W) uint8.

    All randomness comes from the ``key`` of the call. The same key gives the same view of the same image in any
    process.
    """

    def __init__(self, preprocess: Preprocess, options: AugmentOptions | None = None) -> None:
        """
        Args:
            preprocess: the model's own; gives the size, the interpolation, the grey level of filled corners.
            options: what to vary; None for the defaults.

        Raises:
            ValueError: for an option out of range, or a number of channels other than 1 or 3.
        """
        self.preprocess = preprocess
        self.options = options or AugmentOptions()
        self.channels = _channels(preprocess)
        self.resample = RESAMPLING[preprocess.interpolation]
        self._eval = EvalTransform(preprocess)
        self._crop, self._augment = build_augment(self.options, preprocess, mirror=False)

    def __call__(self, image: ImageInput, key: int) -> Tensor:
        """A view of an image, chosen by ``key`` (see :func:`visionzoo.data.keys.sample_key`).

        Args:
            image: an RGB image, or one that is still to be decoded: of a JPEG, no more is decoded than the view shows.
            key: the same key gives the same view.

        Raises:
            UnreadableImage: as :func:`visionzoo.data.images.open_image`.
        """
        # Both kinds of generator are needed: albumentations draws from NumPy's and from Python's. They are shared by
        # all its transforms; a seed would give every transform the same stream, hence correlated choices.
        numbers, choices = np.random.default_rng(key), random.Random(key)
        view: Image.Image | np.ndarray
        view = self._eval.fit(open_image(image)) if self._crop is None else self._random_crop(image, numbers, choices)
        if self._augment is not None:
            self._augment.set_random_state(numbers, choices)
            view = self._augment(image=_three_channels(view))["image"]
        # Albumentations can mirror too, at the price of its bookkeeping for every image.
        across, down = choices.random() < self.options.hflip, choices.random() < self.options.vflip
        return to_tensor(view, self.channels, _FLIP[across, down])

    def _random_crop(
        self, image: ImageInput, numbers: np.random.Generator, choices: random.Random
    ) -> Image.Image | np.ndarray:
        """A random region, stretched to the model's input: an RGB image, or (H, W, 3 or 4) uint8."""
        self._crop.set_random_state(numbers, choices)
        choose = functools.partial(draw_box, self._crop)
        height, width = self.preprocess.image_size
        if self.options.decode == "fast":
            region = open_region(image, choose, (width, height))
            return _fast_resize(region, (width, height), self.preprocess.interpolation)
        # Cropped first, as torchvision does: resizing with a box would blend in pixels from outside it.
        return open_crop(image, choose).resize((width, height), self.resample)
