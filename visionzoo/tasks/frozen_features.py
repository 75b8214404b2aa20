"""What frozen layers make of images that are the same in every epoch: computed once, and kept between runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from visionzoo.cache import Cache, cache_folder


class FrozenFeatures:
    """Feature maps of a frozen network, from the cache where they are there already.

    Args:
        compute: (B, C, H, W) uint8 -> tensors whose first axis is B.
        identity: everything that an answer depends on beside its image, in words. Asked for with the first image, when
            all weights are there.
        folder: of the cache; ``None`` for the user's own, ``off`` for no cache.
    """

    def __init__(
        self, compute: Callable[[Tensor], list[Tensor]], identity: Callable[[], str], folder: str | None = None
    ) -> None:
        self._compute, self._identity = compute, identity
        #: Where they are kept; None for nowhere.
        self.folder = None if folder == "off" else Path(folder) if folder else cache_folder("embeddings")
        #: None before the first image, and without a folder.
        self.cache: Cache | None = None

    def forget(self) -> None:
        """Weights may change now: the next image asks for :attr:`identity` again."""
        self.cache = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) uint8 -> tensors whose first axis is B, on the images' device."""
        # One by one: what is kept must not depend on which images happened to be in a batch.
        alone = [self._of_one(image[None]) for image in images]
        return [torch.cat(maps) for maps in zip(*alone, strict=True)]

    def _of_one(self, image: Tensor) -> list[Tensor]:
        if self.folder is None:
            return self._compute(image)
        if self.cache is None:
            self.cache = Cache("embeddings", self.folder, of=self._identity())
        if (kept := self.cache.read(image)) is not None:
            return [kept[str(m)].to(image.device) for m in range(len(kept))]
        maps = self._compute(image)
        self.cache.write({str(m): x for m, x in enumerate(maps)}, image)
        return maps
