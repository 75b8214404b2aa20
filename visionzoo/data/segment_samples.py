"""Images with masks as samples and batches. Workers import this, and not the datamodule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch.utils.data import default_collate

from visionzoo.data.dataset import Sample, SourceDataset, bad_samples
from visionzoo.data.sources.objects import Objects, ObjectSource
from visionzoo.data.views import View
from visionzoo.types import LEFT_OUT, SegmentBatch

MakeView = Callable[[Image.Image, Objects, int], View]


class SegmentDataset(SourceDataset):
    """Images of a source with the masks of their objects."""

    def __init__(self, source: ObjectSource, view: MakeView, *, seed: int = 0, substitute: bool = False) -> None:
        """
        Args:
            source: images with objects.
            view: called with the image, its objects and the key of the view.
            seed, substitute: see :class:`SourceDataset`.
        """
        super().__init__(source, seed=seed, substitute=substitute)
        self.annotated, self.view = source, view

    def load(self, index: int, key: int) -> View:
        return self.view(*self.annotated.pair(index), key)


class SegmentCollate:
    """Samples to a :class:`SegmentBatch`."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """``shape`` is (C, H, W) of an image, for a batch without any."""
        self.shape = shape

    def __call__(self, samples: Sequence[Sample]) -> SegmentBatch:
        good = [sample for sample in samples if sample.value is not None]
        views: list[View] = [sample.value for sample in good]
        size = self.shape[1:]
        images = [v.image for v in views]
        return SegmentBatch(
            images=default_collate(images) if images else torch.empty((0, *self.shape), dtype=torch.uint8),
            masks=torch.cat([v.masks for v in views]) if views else torch.empty((0, *size), dtype=torch.bool),
            image_index=torch.tensor([b for b, v in enumerate(views) for _ in v.names], dtype=torch.int64),
            names=tuple(name for v in views for name in v.names),
            valid=default_collate([v.valid for v in views]) if views else torch.empty((0, *size), dtype=torch.bool),
            sizes=torch.tensor([v.size for v in views], dtype=torch.int64).reshape(-1, 2),
            left_out=torch.tensor([v.left_out for v in views], dtype=torch.int64).reshape(-1, len(LEFT_OUT)),
            index=torch.tensor([sample.position for sample in good], dtype=torch.int64),
            bad=bad_samples(samples),
        )
