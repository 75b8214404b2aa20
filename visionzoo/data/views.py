"""Views of an image together with the masks of its objects.

Geometry is a rectangle of the image that lands on a rectangle of the model's input. The pixels are resampled by PIL, as
in :mod:`visionzoo.data.transforms`; masks are taken at the nearest pixel, by the same rectangles. Mirroring and colour
are albumentations', for image and masks at once.

Legend: M objects of one image, n of them in a view, (H, W) the model's input.
"""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzoo.data.augment import build_augment, draw_box
from visionzoo.data.images import UnreadableImage
from visionzoo.data.options import ViewOptions
from visionzoo.data.sources.objects import ObjectMasks, check_size
from visionzoo.data.transforms import RESAMPLING, EvalTransform, to_tensor
from visionzoo.types import Preprocess

#: Random views that are tried before the whole image is taken, when none of its objects is in them.
ATTEMPTS = 4


class Grid(NamedTuple):
    """Which pixel of the image each pixel of the input shows."""

    rows: np.ndarray  #: (H,) int64 row of the image; -1 where there is padding
    columns: np.ndarray  #: (W,) int64 column of the image; -1 where there is padding

    def take(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) bool of a mask of the whole image; padding is False."""
        seen: np.ndarray = np.take(mask[self.rows], self.columns, axis=1)
        seen[self.rows < 0] = False
        seen[:, self.columns < 0] = False
        return seen

    def valid(self) -> np.ndarray:
        """(H, W) bool, where there is image."""
        return (self.rows >= 0)[:, None] & (self.columns >= 0)


class View(NamedTuple):
    """What a model is shown of one image."""

    image: Tensor  #: (C, H, W) uint8
    masks: Tensor  #: (n, H, W) bool, none with fewer pixels than asked for
    names: tuple[str, ...]  #: n
    valid: Tensor  #: (H, W) bool, where there is image: not padding, and not pixels that nobody labelled (void)
    size: tuple[int, int]  #: (height, width) of the upright image
    left_out: tuple[int, int, int]  #: objects left out, see :data:`visionzoo.types.LEFT_OUT`


class EvalView:
    """An image as the model sees it in evaluation, with its masks."""

    def __init__(self, preprocess: Preprocess, *, masks_per_image: int | None = None, min_area: int = 4) -> None:
        """
        Args:
            preprocess: the model's own.
            masks_per_image: most masks; which of more is drawn by the key. None for all.
            min_area: fewest pixels of an object, in the image and in the view.
        """
        self.transform = EvalTransform(preprocess)
        self.masks_per_image, self.min_area = masks_per_image, min_area

    def __call__(self, image: Image.Image, objects: ObjectMasks, key: int) -> View:
        """The view of an RGB image; it may have no objects.

        Raises:
            UnreadableImage: if the masks have another size than the image.
        """
        check_size(image, objects)
        grid = eval_grid(self.transform, image.height, image.width)
        order = _large_enough(objects, self.min_area)
        if self.masks_per_image is not None and len(order) > self.masks_per_image:
            order = np.random.default_rng(key).permutation(order)
        chosen, small = _visible(objects, order, grid, self.masks_per_image, self.min_area)
        chosen.sort(key=lambda pair: pair[0])
        small_here, empty, crowds = _left_out(objects, self.min_area)
        return View(
            image=self.transform(image),
            masks=_stack([seen for _, seen in chosen], grid.valid().shape),
            names=tuple(objects.names[k] for k, _ in chosen),
            valid=torch.from_numpy(_valid(objects, grid)),
            size=objects.size,
            left_out=(small_here + small, empty, crowds),
        )


class TrainView:
    """A random view for training. All randomness comes from the key, as in ``TrainTransform``."""

    def __init__(self, preprocess: Preprocess, options: ViewOptions) -> None:
        """
        Args:
            preprocess: the model's own.
            options: what varies.
        """
        self.preprocess, self.options = preprocess, options
        self.transform = EvalTransform(preprocess)
        self.resample = RESAMPLING[preprocess.interpolation]
        self._crop, self._augment = build_augment(options.augment(), preprocess)

    def __call__(self, image: Image.Image, objects: ObjectMasks, key: int) -> View:
        """A view with at least one object.

        Raises:
            UnreadableImage: if the masks have another size than the image, or there is no object large enough.
        """
        check_size(image, objects)
        least = self.options.min_area
        large = _large_enough(objects, least)
        if not len(large):
            raise UnreadableImage(f"no objects of at least {least} pixels")
        numbers, choices = np.random.default_rng(key), random.Random(key)
        order = numbers.permutation(large)
        for _ in range(ATTEMPTS):
            pixels, grid = self._place(image, numbers, choices)
            chosen, _ = _visible(objects, order, grid, self.options.masks_per_image, least)
            if chosen:
                break
        else:
            grid = eval_grid(self.transform, image.height, image.width)
            pixels = np.array(self.transform.fit(image))
            chosen, _ = _visible(objects, order, grid, self.options.masks_per_image, least)
            if not chosen:
                height, width = self.preprocess.image_size
                better = self._size_that_shows(objects, image.height, image.width)
                raise UnreadableImage(
                    f"its objects are too small: fewer than {least} pixels at {height} x {width}; "
                    f"--model.image_size {better} would show the largest"
                )
        masks = [seen for _, seen in chosen]
        valid = _valid(objects, grid)
        if self._augment is not None:
            self._augment.set_random_state(numbers, choices)
            # Only where there is image: padding keeps its place and its colour.
            inside = _inside(grid.rows), _inside(grid.columns)
            result = self._augment(
                image=pixels[inside], masks=[layer[inside].astype(np.uint8) for layer in (valid, *masks)]
            )
            for layer, changed in zip((pixels, valid, *masks), (result["image"], *result["masks"]), strict=True):
                layer[inside] = changed
        return View(
            image=to_tensor(pixels, self.transform.channels),
            masks=_stack(masks, grid.valid().shape),
            names=tuple(objects.names[k] for k, _ in chosen),
            valid=torch.from_numpy(valid),
            size=objects.size,
            left_out=_left_out(objects, least),
        )

    def _size_that_shows(self, objects: ObjectMasks, height: int, width: int) -> int:
        """The input size, a multiple of 32 pixels, at which the largest object has enough of them."""
        now = self.transform.resized_size(height, width)
        area = float(objects.areas.max()) * (now[0] / height) * (now[1] / width)  # in the view, on average
        edge = max(self.preprocess.image_size) * max(1.0, math.sqrt(self.options.min_area / area))
        return 32 * (math.floor(edge / 32) + 1)

    def _place(
        self, image: Image.Image, numbers: np.random.Generator, choices: random.Random
    ) -> tuple[np.ndarray, Grid]:
        """The pixels (H, W, 3) of a random view, before mirroring and colour, and where they are from."""
        height, width = self.preprocess.image_size
        if self._crop is not None:
            self._crop.set_random_state(numbers, choices)
            left, top, right, bottom = draw_box(self._crop, image.size)
            shown = image.crop((left, top, right, bottom)).resize((width, height), self.resample)
            return np.array(shown), Grid(_nearest(top, bottom, height), _nearest(left, right, width))
        if self.options.crop == "resize":
            return np.array(self.transform.fit(image)), eval_grid(self.transform, image.height, image.width)
        scale = numbers.uniform(*self.options.jitter_scale)
        whole = self.transform.resized_size(image.height, image.width)
        shift = numbers.random(2)
        down, across = (
            _window(old, new * scale, edge, float(at), self.preprocess.pad_anchor)
            for old, new, edge, at in zip((image.height, image.width), whole, (height, width), shift, strict=True)
        )
        part = image.crop((across.start, down.start, across.stop, down.stop))
        fill: Any = self.preprocess.pad_value
        canvas = np.empty((height, width, 3), dtype=np.uint8)
        canvas[:] = fill
        canvas[down.to : down.to + down.size, across.to : across.to + across.size] = np.asarray(
            part.resize((across.size, down.size), self.resample)
        )
        return canvas, Grid(down.indices(height), across.indices(width))


class _Span(NamedTuple):
    """Along one axis: pixels start..stop of the image become ``size`` pixels of the input from ``to`` on."""

    start: int
    stop: int
    size: int
    to: int

    def indices(self, edge: int) -> np.ndarray:
        """(edge,) int64, the pixel of the image at each pixel of the input; -1 outside."""
        found = np.full(edge, -1, dtype=np.int64)
        found[self.to : self.to + self.size] = _nearest(self.start, self.stop, self.size)
        return found


def _window(old: int, new: float, edge: int, shift: float, anchor: str) -> _Span:
    """An axis of ``old`` pixels, scaled to ``new``: what of it is seen in ``edge`` pixels.

    What is longer is cut at ``shift``, a share of what is too much; what is shorter is padded at the anchor.
    """
    if new > edge:
        length = max(1, round(old * edge / new))
        start = round(shift * (old - length))
        return _Span(start, start + length, edge, 0)
    size = max(1, round(new))
    return _Span(0, old, size, 0 if anchor == "top_left" else (edge - size) // 2)


def _nearest(start: int, stop: int, size: int) -> np.ndarray:
    """(size,) int64: pixels start..stop resampled to ``size`` by PIL's nearest rule."""
    step = (stop - start) / size
    # Summed up as PIL does, so that rounding decides alike where a centre falls between two pixels.
    places = np.cumsum(np.concatenate([[step / 2], np.full(size - 1, step)]))
    return start + np.minimum(places.astype(np.int64), stop - start - 1)


def eval_grid(transform: EvalTransform, height: int, width: int) -> Grid:
    """Which pixel of an image of (height, width) each pixel of the evaluation view shows."""
    edges = transform.preprocess.image_size
    resized = transform.resized_size(height, width)
    axes = []
    for old, new, edge in zip((height, width), resized, edges, strict=True):
        pad = max(edge - new, 0)
        before = 0 if transform.preprocess.pad_anchor == "top_left" else pad // 2
        first = round((new + pad - edge) / 2.0) - before  # in the resized image, of the input's first pixel
        place = np.arange(edge) + first
        source = _nearest(0, old, new)[np.clip(place, 0, new - 1)]
        axes.append(np.where((place >= 0) & (place < new), source, -1))
    return Grid(axes[0], axes[1])


def _inside(axis: np.ndarray) -> slice:
    """The part of an axis of a :class:`Grid` that shows the image."""
    shown = np.flatnonzero(axis >= 0)
    return slice(int(shown[0]), int(shown[-1]) + 1)


def _valid(objects: ObjectMasks, grid: Grid) -> np.ndarray:
    """(H, W) bool, where there is image that somebody labelled."""
    valid, void = grid.valid(), objects.void()
    return valid if void is None else valid & ~grid.take(void)


def _large_enough(objects: ObjectMasks, least: int) -> np.ndarray:
    return np.flatnonzero(objects.areas >= least)


def _visible(
    objects: ObjectMasks, order: np.ndarray, grid: Grid, most: int | None, least: int
) -> tuple[list[tuple[int, np.ndarray]], int]:
    """(object, mask) of the first ``most`` objects in ``order`` that can be seen; and how many were too small for it,
    by the model's resolution or outside a crop."""
    chosen: list[tuple[int, np.ndarray]] = []
    small = 0
    for k in order:
        if len(chosen) == most:
            break
        seen = grid.take(objects.mask(int(k)))
        if seen.sum() >= least:
            chosen.append((int(k), seen))
        else:
            small += 1
    return chosen, small


def _left_out(objects: ObjectMasks, least: int) -> tuple[int, int, int]:
    empty = int((objects.areas == 0).sum())
    return int((objects.areas < least).sum()) - empty, empty, objects.crowds


def _stack(masks: list[np.ndarray], shape: tuple[int, ...]) -> Tensor:
    """(n, H, W) bool."""
    return torch.from_numpy(np.stack(masks)) if masks else torch.empty((0, *shape), dtype=torch.bool)
