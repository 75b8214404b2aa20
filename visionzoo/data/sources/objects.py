"""Images with the masks of their objects.

Legend: M objects of one image, (H, W) its pixels.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

from visionzoo.data.images import ImageInput, UnreadableImage, open_values
from visionzoo.data.sources.base import NO_LABEL, FilesSource, PackedPaths, Source, Subset
from visionzoo.data.sources.runs import fill_mask
from visionzoo.data.sources.shapes import Drawing, ShapesSource


class Objects(ABC):
    """The objects of one image. Masks are made one at a time: hundreds at full size would fill the memory."""

    size: tuple[int, int]  #: (H, W) of the masks
    areas: np.ndarray  #: (M,) int64, pixels of each; 0 for an empty mask
    names: tuple[str, ...]  #: M, category or caption of each; "" where unknown
    crowds: int = 0  #: crowd regions that were left out

    @abstractmethod
    def mask(self, k: int) -> np.ndarray:
        """(H, W) bool, where object ``k`` is."""


class LabelMap(Objects):
    """Objects that are the different values of one map; 0 is background."""

    def __init__(self, values: np.ndarray, name: str = "") -> None:
        """``values`` is (H, W) of whole numbers; ``name`` is that of every object."""
        self.size = (values.shape[0], values.shape[1])
        self._values = values
        found, areas = np.unique(values, return_counts=True)
        self._labels, self.areas = found[found != 0], areas[found != 0]
        self.names = (name,) * len(self._labels)

    def mask(self, k: int) -> np.ndarray:
        found: np.ndarray = self._values == self._labels[k]
        return found


class RunObjects(Objects):
    """Objects by run lengths, see :mod:`visionzoo.data.sources.runs`; they may overlap."""

    def __init__(
        self, runs: Sequence[np.ndarray], names: Sequence[str], size: tuple[int, int], crowds: int = 0
    ) -> None:
        self.size, self.names, self.crowds = size, tuple(names), crowds
        self._runs = runs
        self.areas = np.array([r[1::2].sum() for r in runs], dtype=np.int64)

    def mask(self, k: int) -> np.ndarray:
        return fill_mask(self._runs[k], *self.size)


class DenseObjects(Objects):
    """Objects whose masks are there already."""

    def __init__(self, masks: np.ndarray, names: Sequence[str]) -> None:
        """``masks`` is (M, H, W) bool."""
        self.size, self.names = (masks.shape[1], masks.shape[2]), tuple(names)
        self._masks = masks
        self.areas = masks.sum(axis=(1, 2))

    def mask(self, k: int) -> np.ndarray:
        found: np.ndarray = self._masks[k]
        return found


class ObjectSource(Source):
    """Images with objects. They have no classes of their own; objects have names."""

    categories: tuple[str, ...] = ()  #: all names that objects can have, where the data list them
    #: (N,) int64, objects of each image, crowds not counted; None where that takes reading every mask
    object_counts: np.ndarray | None = None

    @abstractmethod
    def objects(self, i: int) -> Objects:
        """The objects of image ``i``.

        Raises:
            UnreadableImage: with the reason.
        """

    def take(self, indices: np.ndarray) -> ObjectSource:
        """Some samples, in the order of ``indices``."""
        return ObjectSubset(self, indices)


class ObjectSubset(Subset, ObjectSource):
    """Some samples of a source of objects."""

    def __init__(self, source: ObjectSource, indices: np.ndarray) -> None:
        super().__init__(source, indices)
        self._objects_of = source
        self.categories = source.categories
        self.object_counts = None if source.object_counts is None else source.object_counts[self.indices]

    def objects(self, i: int) -> Objects:
        return self._objects_of.objects(int(self.indices[i]))


class LabelMapSource(FilesSource, ObjectSource):
    """Images, and label maps of the same name in another folder."""

    def __init__(
        self, root: str, names: Sequence[bytes], maps_root: str, maps: Sequence[bytes], object_name: str
    ) -> None:
        """
        Args:
            root, names: the images, see :class:`FilesSource`.
            maps_root, maps: the maps, in the same order.
            object_name: of every object, "" if unknown.
        """
        super().__init__(root, names)
        self.maps_root, self.maps, self.object_name = maps_root, PackedPaths(maps), object_name
        self.categories = (object_name,) if object_name else ()

    def objects(self, i: int) -> Objects:
        try:
            return LabelMap(open_values(os.path.join(self.maps_root, self.maps[i])), self.object_name)
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask: {error.reason}") from error


class ShapeObjects(ObjectSource):
    """The built-in shapes with their masks; an object's name is such as "red circle"."""

    def __init__(self, images: ShapesSource) -> None:
        self.images = images
        self.classes, self.multi_label = (), False
        self.targets = np.full(len(images), NO_LABEL, dtype=np.int64)
        self.categories = tuple(f"{colour} {kind}" for colour, kind in images.combinations)
        # The picture and its masks are asked for one after the other.
        self._last: tuple[int, Drawing] | None = None

    def sample_id(self, i: int) -> str:
        return self.images.sample_id(i)

    def raw(self, i: int) -> ImageInput:
        return self._drawing(i).image

    def _drawing(self, i: int) -> Drawing:
        if self._last is None or self._last[0] != i:
            self._last = i, self.images.drawing(i)
        return self._last[1]

    def stable_ids(self) -> Iterable[str]:
        return self.images.stable_ids()

    def objects(self, i: int) -> Objects:
        drawing = self._drawing(i)
        return DenseObjects(drawing.masks, [f"{colour} {kind}" for colour, kind in drawing.objects])
