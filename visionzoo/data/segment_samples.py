"""Images with masks as samples and batches. Workers import this, and not the datamodule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from visionzoo.data.dataset import Collate, SourceDataset, stacked
from visionzoo.data.sources.objects import ObjectMasks, ObjectSource
from visionzoo.data.views import View
from visionzoo.types import LEFT_OUT, SegmentBatch

MakeView = Callable[[Image.Image, ObjectMasks, int], View]


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
        """A view of an image with its masks; ``key`` decides what is random."""
        return self.view(*self.annotated.pair(index), key)


class SegmentCollate(Collate):
    """Samples to a :class:`SegmentBatch`."""

    def batch(self, values: list[View], index: Tensor, bad: tuple[tuple[str, str], ...]) -> SegmentBatch:
        size = self.shape[1:]
        return SegmentBatch(
            images=stacked([v.image for v in values], self.shape, torch.uint8),
            masks=torch.cat([v.masks for v in values]) if values else torch.empty((0, *size), dtype=torch.bool),
            image_index=torch.tensor([b for b, v in enumerate(values) for _ in v.names], dtype=torch.int64),
            names=tuple(name for v in values for name in v.names),
            valid=stacked([v.valid for v in values], size, torch.bool),
            sizes=torch.tensor([v.size for v in values], dtype=torch.int64).reshape(-1, 2),
            left_out=torch.tensor([v.left_out for v in values], dtype=torch.int64).reshape(-1, len(LEFT_OUT)),
            index=index,
            bad=bad,
        )
