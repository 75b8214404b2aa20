"""Batches of images with objects, taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from visionzoo.tasks.prompting import Draws, Objects
from visionzoo.types import SegmentBatch


class Part(NamedTuple):
    """A training batch, or a part of one."""

    batch: SegmentBatch
    draws: Draws  #: of its objects
    answers: Tensor  #: how many answers about the whole batch the loss is the mean of
    texts: int  #: how many names are asked for in the whole batch

    @classmethod
    def of(
        cls, batch: SegmentBatch, *, clicks: int, mask_rounds: int, box_share: float, ambiguous: bool, named: bool
    ) -> Part:
        """A whole batch, with the random numbers of its conversations; ``named``: it is asked for by names as well."""
        draws = Draws.of(
            Objects.of(batch), clicks=clicks, mask_rounds=mask_rounds, box_share=box_share, ambiguous=ambiguous
        )
        answers = draws.clear.sum() + len(batch.masks) * (1 + clicks + mask_rounds)
        index = batch.image_index.tolist() if named else ()  # on a GPU that is a wait
        texts = len({(b, name) for b, name in zip(index, batch.names, strict=named) if name})
        return cls(batch, draws, answers.clamp(min=1), texts)

    def split(self, size: int) -> list[Part]:
        """Parts of at most ``size`` images."""
        batch, parts = self.batch, []
        for first in range(0, len(batch.images), size):
            mine = (batch.image_index >= first) & (batch.image_index < first + size)
            own = select(batch, slice(first, first + size), mine)
            own = own._replace(image_index=own.image_index - first)
            parts.append(self._replace(batch=own, draws=self.draws.select(mine)))
        return parts


def each_image(batch: SegmentBatch) -> Iterator[tuple[int, SegmentBatch]]:
    """Each image that has objects, with its place in the batch, as a batch of its own.

    Answers then do not depend on how images are put into batches, and what the decoder makes of an image is computed
    once for all its objects.
    """
    for b in batch.image_index.unique().tolist():
        mine = batch.image_index == b
        own = select(batch, slice(b, b + 1), mine)
        yield b, own._replace(image_index=torch.zeros_like(own.image_index))


def select(batch: SegmentBatch, images: slice, objects: Tensor) -> SegmentBatch:
    """Some images with their objects, (N,) bool. ``image_index`` still counts from the batch's first image."""
    return batch._replace(
        images=batch.images[images],
        masks=batch.masks[objects],
        image_index=batch.image_index[objects],
        names=tuple(name for name, own in zip(batch.names, objects.tolist(), strict=True) if own),
        valid=batch.valid[images],
        sizes=batch.sizes[images],
        left_out=batch.left_out[images],
        index=batch.index[images],
        bad=(),
    )
