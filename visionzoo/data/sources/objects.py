"""Images with the masks of their objects.

Legend: M objects of one image, (H, W) its pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from visionzoo.data.images import SIDEWAYS, ImageInput, UnreadableImage, orientation_of, turn_mask
from visionzoo.data.sources.base import NO_LABEL, Source, Subset
from visionzoo.data.sources.rle import RLE
from visionzoo.data.sources.shapes import Drawing, ShapesSource


class ObjectMasks(ABC):
    """The objects of one image. Masks are made one at a time: hundreds at full size would fill the memory."""

    size: tuple[int, int]  #: (H, W) of the masks
    areas: np.ndarray  #: (M,) int64, pixels of each; 0 for an empty mask
    names: tuple[str, ...]  #: M, category or caption of each; "" where unknown
    crowds: int = 0  #: crowd regions that were left out

    @abstractmethod
    def mask(self, k: int) -> np.ndarray:
        """(H, W) bool, where object ``k`` is."""

    def void(self) -> np.ndarray | None:
        """(H, W) bool, pixels that nobody labelled, which are neither learned from nor scored; None for none."""
        return None


class RunObjects(ObjectMasks):
    """Objects by run lengths; they may overlap."""

    def __init__(self, runs: Sequence[RLE], names: Sequence[str], size: tuple[int, int], crowds: int = 0) -> None:
        self.size, self.names, self.crowds = size, tuple(names), crowds
        self._runs = runs
        self.areas = np.array([run.area for run in runs], dtype=np.int64)

    def mask(self, k: int) -> np.ndarray:
        return self._runs[k].mask()


class DenseObjects(ObjectMasks):
    """Objects whose masks are there already."""

    def __init__(self, masks: np.ndarray, names: Sequence[str]) -> None:
        """``masks`` is (M, H, W) bool."""
        self.size, self.names = (masks.shape[1], masks.shape[2]), tuple(names)
        self._masks = masks
        self.areas = masks.sum(axis=(1, 2))

    def mask(self, k: int) -> np.ndarray:
        found: np.ndarray = self._masks[k]
        return found


class TurnedObjects(ObjectMasks):
    """Objects drawn on the pixels as the file stores them, turned as EXIF says the picture is."""

    def __init__(self, objects: ObjectMasks, orientation: int) -> None:
        self._objects, self._orientation = objects, orientation
        self.size = (objects.size[1], objects.size[0])
        self.areas, self.names, self.crowds = objects.areas, objects.names, objects.crowds

    def mask(self, k: int) -> np.ndarray:
        return turn_mask(self._objects.mask(k), self._orientation)

    def void(self) -> np.ndarray | None:
        void = self._objects.void()
        return None if void is None else turn_mask(void, self._orientation)


def check_size(image: Image.Image, objects: ObjectMasks) -> None:
    """Raises UnreadableImage for masks of another size than their image."""
    if objects.size != (image.height, image.width):
        height, width = objects.size
        raise UnreadableImage(f"its mask is {width}x{height} pixels, the image {image.width}x{image.height}")


class ObjectSource(Source):
    """Images with objects. They have no classes of their own; objects have names."""

    categories: tuple[str, ...] = ()  #: all names that objects can have, where the data list them
    #: (N,) int64, objects of each image, crowds not counted; None where that takes reading every mask
    object_counts: np.ndarray | None = None

    @abstractmethod
    def objects(self, i: int) -> ObjectMasks:
        """The objects of image ``i``.

        Raises:
            UnreadableImage: with the reason.
        """

    def pair(self, i: int) -> tuple[Image.Image, ObjectMasks]:
        """The upright image ``i`` and its objects, turned with it where their size is that of the stored pixels.

        Raises:
            UnreadableImage: with the reason.
        """
        image, objects = self.read(i), self.objects(i)
        turned = image.size == objects.size and image.width != image.height
        if turned and (orientation := orientation_of(self.raw(i))) >= SIDEWAYS:
            objects = TurnedObjects(objects, orientation)
        return image, objects

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

    def objects(self, i: int) -> ObjectMasks:
        return self._objects_of.objects(int(self.indices[i]))


class ShapeObjects(ObjectSource):
    """The built-in shapes with their masks; an object's name is such as "red circle"."""

    def __init__(self, images: ShapesSource) -> None:
        self.images = images
        self.classes = ()
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

    def objects(self, i: int) -> ObjectMasks:
        drawing = self._drawing(i)
        return DenseObjects(drawing.masks, [f"{colour} {kind}" for colour, kind in drawing.objects])
