"""Samples by (epoch, index), and what happens when one cannot be read.

Legend: B batch, C channels, (H, W) pixels, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from visionzoo.data.images import ImageInput, UnreadableImage
from visionzoo.data.keys import sample_key
from visionzoo.data.sampler import Key
from visionzoo.data.sources.base import Source
from visionzoo.types import ImageBatch

#: How many other images are tried in place of an unreadable one before the data are given up.
SUBSTITUTES = 32

#: An image, decoded or not, and a key in, (C, H, W) uint8 out.
Transform = Callable[[ImageInput, int], Tensor]


class Sample(NamedTuple):
    """One sample on its way into a batch."""

    value: Any  #: what :meth:`SourceDataset.load` gave; None if it could not be read and nothing takes its place
    position: int  #: in the source; of the substitute where there is one
    bad: tuple[tuple[str, str], ...] = ()  #: (sample id, reason) of what could not be read


class SourceDataset(Dataset[Sample]):
    """Map-style data set over a source.

    Keys are those of :mod:`visionzoo.data.sampler`, so that nothing about a view is left to chance. A subclass says in
    :meth:`load` what a sample is; this class deals with those that cannot be read.
    """

    def __init__(self, source: Source, *, seed: int = 0, substitute: bool = False) -> None:
        """
        Args:
            source: where images come from.
            seed: of the key that a view is made by.
            substitute: put another sample, chosen by (seed, epoch, index), in the place of an unreadable one, as
                training needs for its ranks to stay in step. Otherwise the sample is left out.
        """
        self.source = source
        self.seed = seed
        self.substitute = substitute
        #: Views of a sample, which come again epoch by epoch; None for another one in each.
        self.views: int | None = None

    def __len__(self) -> int:
        return len(self.source)

    @abstractmethod
    def load(self, index: int, key: int) -> Any:
        """Sample ``index``, as ``key``, hashed from the seed and the sample's place, says. Raises UnreadableImage."""

    def __getitem__(self, key: Key) -> Sample:
        """Raises ValueError if not one of :data:`SUBSTITUTES` others can be read either."""
        epoch, index, *again = key
        bad: list[tuple[str, str]] = []
        candidate, turn = index, epoch if self.views is None else epoch % self.views
        for attempt in range(SUBSTITUTES + 1):
            try:
                value = self.load(candidate, sample_key(self.seed, turn, candidate, *again))
                return Sample(value, candidate, tuple(bad))
            except UnreadableImage as error:
                bad.append((self.source.sample_id(candidate), error.reason))
            if not self.substitute:
                return Sample(None, index, tuple(bad))
            # Any other one: the bad image itself would be a wasted try.
            others = max(len(self.source) - 1, 1)
            candidate = (index + 1 + sample_key(self.seed, epoch, index, attempt) % others) % len(self.source)
        listed = "; ".join(f"{name}: {reason}" for name, reason in bad[:5])
        raise ValueError(f"{len(bad)} images in a row could not be read, for example {listed}")


class ImageDataset(SourceDataset):
    """Images of a source as (C, H, W) uint8 tensors."""

    def __init__(self, source: Source, transform: Transform, *, seed: int = 0, substitute: bool = False) -> None:
        """``transform`` is called with the image and the key of its view; the rest as in :class:`SourceDataset`."""
        super().__init__(source, seed=seed, substitute=substitute)
        self.transform = transform

    def load(self, index: int, key: int) -> Tensor:
        """A view (C, H, W) uint8 of an image; ``key`` decides what is random. Raises UnreadableImage."""
        if self.source.classes and not self.source.has_label(index):
            raise UnreadableImage("no label")
        return self.transform(self.source.raw(index), key)


class Collate:
    """Samples to an :class:`ImageBatch`. Knows the shape, so that a batch of unreadable images has it too."""

    def __init__(self, source: Source, shape: tuple[int, int, int]) -> None:
        """
        Args:
            source: gives the labels.
            shape: (C, H, W) of an image.
        """
        self.targets = torch.from_numpy(source.targets)
        self.shape = shape

    def __call__(self, samples: Sequence[Sample]) -> Any:
        """Raises nothing: unreadable samples are left out, so B may be 0."""
        good = [sample for sample in samples if sample.value is not None]
        index = torch.tensor([sample.position for sample in good], dtype=torch.int64)
        bad = tuple(entry for sample in samples for entry in sample.bad)
        return self.batch([sample.value for sample in good], index=index, bad=bad)

    def batch(self, values: list[Any], index: Tensor, bad: tuple[tuple[str, str], ...]) -> Any:
        """The batch of what :meth:`SourceDataset.load` gave."""
        images = stacked(values, self.shape, torch.uint8)
        return ImageBatch(images=images, labels=self.targets[index], index=index, bad=bad)


def stacked(tensors: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(B, *shape) of B tensors, of which there may be none."""
    # default_collate, unlike torch.stack, writes straight into shared memory when it runs in a worker.
    return default_collate(tensors) if tensors else torch.empty((0, *shape), dtype=dtype)
