"""Captioned images as samples and batches. Workers import this, and not the datamodule."""

from __future__ import annotations

import torch
from torch import Tensor

from visionzoo.data.dataset import Collate, SourceDataset, Transform, stacked
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
        """A view (C, H, W) uint8 and its captions: one drawn by ``key`` in training, else all. Raises
        UnreadableImage."""
        captions = self.captioned.captions(index)
        if not captions:
            raise UnreadableImage("no caption")
        if self.one_caption:
            # Hashed once more: the view is made by the key itself, and the two choices should not be related.
            captions = (captions[sample_key(key, 1) % len(captions)],)
        return self.transform(self.source.raw(index), key), captions


class CaptionCollate(Collate):
    """Samples to a :class:`CaptionBatch`."""

    def batch(
        self, values: list[tuple[Tensor, tuple[str, ...]]], index: Tensor, bad: tuple[tuple[str, str], ...]
    ) -> CaptionBatch:
        return CaptionBatch(
            images=stacked([image for image, _ in values], self.shape, torch.uint8),
            texts=tuple(text for _, several in values for text in several),
            text_image=torch.tensor([b for b, (_, several) in enumerate(values) for _ in several], dtype=torch.int64),
            index=index,
            bad=bad,
        )
