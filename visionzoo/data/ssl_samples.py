"""Several views of each image, drawn from seeds; a file is read once for all of them. Workers import this.

Legend: C channels, (H, W) pixels, V large views, (h, w) grid of patches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzoo.data.augment import draw_box
from visionzoo.data.block_masks import view_mask
from visionzoo.data.dataset import Collate, SourceDataset, stacked
from visionzoo.data.images import open_image
from visionzoo.data.keys import sample_key
from visionzoo.data.options import MultiViewOptions
from visionzoo.data.sources.base import Source
from visionzoo.data.transforms import RESAMPLING, to_tensor
from visionzoo.types import LARGE_VIEWS, Preprocess, ViewBatch


@dataclass(frozen=True)
class ViewKind:
    """How one of the views of an image is drawn."""

    size: tuple[int, int]  #: (height, width)
    scale: tuple[float, float]  #: share of the image's area
    blur: float  #: probability
    solarize: float  #: probability


def view_kinds(options: MultiViewOptions, preprocess: Preprocess) -> tuple[ViewKind, ...]:
    """The views of an image, in their order: large ones, then small ones.

    The first is always blurred and the second seldom, and solarised at times (BYOL, arXiv 2006.07733, appendix B, as
    MoCo v3 and DINO do it), but for ``recipe=simclr``, where each is blurred with probability 0.5 and none solarised
    (2002.05709, appendix A).
    """
    large, small = preprocess.image_size, (options.small_size, options.small_size)
    if options.recipe == "simclr":
        kinds = [ViewKind(large, options.large_scale, 0.5, 0.0)] * 2
    else:
        kinds = [ViewKind(large, options.large_scale, 1.0, 0.0), ViewKind(large, options.large_scale, 0.1, 0.2)]
    return (*kinds, *[ViewKind(small, options.small_scale, 0.5, 0.0)] * options.small_views)


class ViewTransform:
    """One random view of a decoded image, (C, H, W) uint8; all randomness comes from the key of the call."""

    def __init__(self, kind: ViewKind, options: MultiViewOptions, preprocess: Preprocess) -> None:
        """
        Args:
            kind: size, region and chances.
            options: strength of colours.
            preprocess: the model's own, for interpolation and channels.
        """
        import albumentations as A

        self.kind, self.hflip = kind, options.hflip
        self.channels, self.resample = len(preprocess.mean), RESAMPLING[preprocess.interpolation]
        self._crop = A.RandomResizedCrop(size=kind.size, scale=kind.scale, ratio=(3 / 4, 4 / 3), p=1.0)
        s = options.color_strength
        steps: list[Any] = []
        if s:
            low, high = max(0.0, 1 - 0.8 * s), 1 + 0.8 * s
            steps.append(
                A.ColorJitter(
                    brightness=(low, high), contrast=(low, high), saturation=(low, high),
                    hue=(-min(0.5, 0.2 * s), min(0.5, 0.2 * s)), p=0.8,
                )
            )  # fmt: skip
        if options.grey:
            steps.append(A.ToGray(p=options.grey))
        if blur := kind.blur * options.blur:
            steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=blur))
        if kind.solarize:
            steps.append(A.Solarize(threshold_range=(0.5, 0.5), p=kind.solarize))
        self._steps = A.Compose(steps, p=1.0) if steps else None

    def __call__(self, image: Image.Image, key: int) -> Tensor:
        """The view of an RGB image that ``key`` says."""
        numbers, choices = np.random.default_rng(key), random.Random(key)
        self._crop.set_random_state(numbers, choices)
        height, width = self.kind.size
        view = image.crop(draw_box(self._crop, image.size)).resize((width, height), self.resample)
        pixels = np.asarray(view)
        if self._steps is not None:
            self._steps.set_random_state(numbers, choices)
            pixels = self._steps(image=pixels)["image"]
        return to_tensor(np.ascontiguousarray(pixels), self.channels, 1 if choices.random() < self.hflip else None)


@dataclass(frozen=True)
class MaskKind:
    """How patches of the large views are hidden."""

    grid: tuple[int, int]  #: (h, w)
    ratio: tuple[float, float]  #: share that is hidden
    probability: float  #: of a view that hides anything


class DrawnViews(NamedTuple):
    """What a :class:`ViewDataset` gives of an image."""

    views: tuple[Tensor, ...]  #: (C, H, W) uint8
    masks: np.ndarray | None = None  #: (V, h, w) bool, true where a patch is hidden


class ViewDataset(SourceDataset):
    """Images of a source as :class:`DrawnViews`."""

    def __init__(
        self, source: Source, transforms: Sequence[ViewTransform], *, seed: int = 0, masks: MaskKind | None = None
    ) -> None:
        super().__init__(source, seed=seed, substitute=True)
        self.transforms, self.masks = tuple(transforms), masks

    def load(self, index: int, key: int) -> DrawnViews:
        """The views (C, H, W) uint8 of an image, view v and its mask drawn by hashes of ``key`` and v. Raises
        UnreadableImage."""
        image = open_image(self.source.raw(index))
        views = tuple(transform(image, sample_key(key, v)) for v, transform in enumerate(self.transforms))
        if (kind := self.masks) is None:
            return DrawnViews(views)
        # a second part, so that what is seen does not depend on whether some of it is hidden
        keys = [sample_key(key, v, 1) for v in range(LARGE_VIEWS)]
        return DrawnViews(views, np.stack([view_mask(kind.grid, kind.ratio, kind.probability, k) for k in keys]))


class ViewCollate(Collate):
    """Samples to a :class:`ViewBatch`."""

    def __init__(self, source: Source, shapes: Sequence[tuple[int, int, int]]) -> None:
        """
        Args:
            source: gives the labels.
            shapes: (C, H, W) of each view.
        """
        super().__init__(source, shapes[0])
        self.shapes = tuple(shapes)

    def batch(self, values: list[DrawnViews], index: Tensor, bad: tuple[tuple[str, str], ...]) -> ViewBatch:
        views = tuple(stacked([v.views[k] for v in values], shape, torch.uint8) for k, shape in enumerate(self.shapes))
        masks = [v.masks for v in values if v.masks is not None]
        # places, not a mask: how many there are is then known without waiting for the device
        hidden = torch.from_numpy(np.flatnonzero(np.stack(masks, axis=1))) if masks else None
        return ViewBatch(views, self.targets[index], index, bad, hidden)
