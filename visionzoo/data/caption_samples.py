"""Captioned images as samples and batches. Workers import this, and not the datamodule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import default_collate

from visionzoo.data.dataset import Sample, SourceDataset, Transform, bad_samples
from visionzoo.data.images import UnreadableImage
from visionzoo.data.keys import sample_key
from visionzoo.data.sources.captions import CaptionSource
from visionzoo.types import CaptionBatch


class CaptionDataset(SourceDataset):
    """Images of a source, each with one of its captions (training) or with all of them."""

    def __init__(
        self, source: CaptionSource, transform: Transform, *, one_caption: bool, seed: int = 0, substitute: bool = False
    ) -> None:
        """
        Args:
            source: images with captions.
            transform: called with the image and the key of its view.
            one_caption: draw one caption by the sample's key; otherwise give all.
            seed, substitute: see :class:`SourceDataset`.
        """
        super().__init__(source, seed=seed, substitute=substitute)
        self.captioned, self.transform, self.one_caption = source, transform, one_caption

    def load(self, index: int, key: int) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.captioned.captions(index)
        if not captions:
            raise UnreadableImage("no caption")
        if self.one_caption:
            # Hashed once more: the view is made by the key itself, and the two choices should not be related.
            captions = (captions[sample_key(key, 1) % len(captions)],)
        return self.transform(self.source.raw(index), key), captions


class CaptionCollate:
    """Samples to a :class:`CaptionBatch`."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """``shape`` is (C, H, W) of an image, for a batch without any."""
        self.shape = shape

    def __call__(self, samples: Sequence[Sample]) -> CaptionBatch:
        good = [sample for sample in samples if sample.value is not None]
        images = [sample.value[0] for sample in good]
        captions = [sample.value[1] for sample in good]
        return CaptionBatch(
            images=default_collate(images) if images else torch.empty((0, *self.shape), dtype=torch.uint8),
            texts=tuple(text for several in captions for text in several),
            text_image=torch.tensor([b for b, several in enumerate(captions) for _ in several], dtype=torch.int64),
            index=torch.tensor([sample.position for sample in good], dtype=torch.int64),
            bad=bad_samples(samples),
        )
