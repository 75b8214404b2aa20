"""Label maps: images whose values say which object a pixel belongs to, as people save them.

Legend: (H, W) pixels of a map.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median

import numpy as np

from visionzoo.data.images import SIDEWAYS, UnreadableImage, open_values, orientation_of
from visionzoo.data.sources.base import FilesSource, PackedPaths
from visionzoo.data.sources.objects import ObjectMasks, ObjectSource

#: Maps that are looked at when the data are opened.
PROBED = 16
#: From this many objects on it is asked whether they are greys between two values.
_MANY_THIN = 8
#: More objects than this in an image are unusual (COCO has at most 93, a slide of nuclei some hundreds).
_IMPLAUSIBLE = 1000
#: How VOC, Cityscapes and ADE20K mark borders and pixels that nobody labelled.
_USUAL_VOID = 255


class LabelMap(ObjectMasks):
    """Objects that are the different values of one map; 0 is background."""

    def __init__(self, values: np.ndarray, name: str = "", void: int | None = None) -> None:
        """
        Args:
            values: (H, W) of whole numbers.
            name: of every object.
            void: the value of pixels that belong to no object and are not scored; None for none.
        """
        self.size = (values.shape[0], values.shape[1])
        self._values = values
        found, areas = np.unique(values, return_counts=True)
        kept = (found != 0) & (found != (0 if void is None else void))
        self.labels, self.areas = found[kept], areas[kept]
        self.names = (name,) * len(self.labels)
        self._void = None if void is None or void not in found else void

    def mask(self, k: int) -> np.ndarray:
        """(H, W) bool, where the map has the k-th object's value."""
        found: np.ndarray = self._values == self.labels[k]
        return found

    def void(self) -> np.ndarray | None:
        """(H, W) bool, what belongs to nothing and is not scored; None where no value says so."""
        return None if self._void is None else self._values == self._void

    def thin(self) -> np.ndarray:
        """(M,) bool: objects no pixel of which has its own value on all four sides."""
        v = self._values
        inner = v[1:-1, 1:-1]
        solid = (inner == v[:-2, 1:-1]) & (inner == v[2:, 1:-1]) & (inner == v[1:-1, :-2]) & (inner == v[1:-1, 2:])
        return ~np.isin(self.labels, inner[solid])

    def smoothed(self) -> bool:
        """Whether it looks drawn with soft edges: one large object, and greys between it and the background."""
        if len(self.labels) < _MANY_THIN or self.areas.argmax() != len(self.labels) - 1:
            return False
        thin = self.thin()
        return bool(not thin[-1] and thin[:-1].mean() > 0.8)


class LabelMapSource(FilesSource, ObjectSource):
    """Images, and label maps of the same name in another folder."""

    def __init__(
        self,
        root: str,
        names: Sequence[bytes],
        maps_root: str,
        maps: Sequence[bytes],
        object_name: str,
        void: int | None = None,
    ) -> None:
        """
        Args:
            root, names: the images, see :class:`FilesSource`.
            maps_root, maps: the maps, in the same order.
            object_name: of every object, "" if unknown.
            void: see :class:`LabelMap`.
        """
        super().__init__(root, names)
        self.maps_root, self.maps = maps_root, PackedPaths(maps)
        self.object_name, self.void = object_name, void
        self.categories = (object_name,) if object_name else ()

    def objects(self, i: int) -> LabelMap:
        """The objects of the map that belongs to image ``i``. Raises UnreadableImage."""
        try:
            found = LabelMap(open_values(os.path.join(self.maps_root, self.maps[i])), self.object_name, self.void)
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask: {error.reason}") from error
        if found.smoothed():
            raise UnreadableImage(
                f"its mask: {len(found.labels)} values, most of them greys along the edge of one object, as soft "
                "(antialiased) edges and resizing leave; draw without, or set it to two values at a threshold"
            )
        return found

    def look(self) -> list[str]:
        """What is odd in a few of the maps, as warnings.

        Raises:
            ValueError: if none of them can be used, with the reason.
        """
        places = np.unique(np.linspace(0, len(self) - 1, PROBED).astype(int)).tolist()
        maps: list[LabelMap] = []
        reasons: list[str] = []
        turned = 0
        for i in places:
            try:
                maps.append(self.objects(i))
            except UnreadableImage as error:
                reasons.append(f"{self.maps[i]}: {error.reason.removeprefix('its mask: ')}")
                continue
            turned += self._is_turned(i, maps[-1])
        if not maps:
            raise ValueError(f"{self.maps_root}: none of {len(places)} masks can be used, for example {reasons[0]}")
        said = []
        if turned:
            said.append(
                f"{turned} of {len(places)} masks have the size of their photo before it is turned by EXIF, and are "
                "turned with it"
            )
        void = sum(_has_void_beside_objects(found) for found in maps)
        if void * 2 > len(maps) and self.void is None:
            said.append(
                f"the value {_USUAL_VOID} is an object of its own in {void} of {len(maps)} masks; where it marks "
                f"borders or what nobody labelled (VOC, Cityscapes), leave it out with --data.void {_USUAL_VOID}"
            )
        counts = [len(found.labels) for found in maps]
        thin = [float(found.thin().mean()) if len(found.labels) >= _MANY_THIN else 0.0 for found in maps]
        if max(counts) > _IMPLAUSIBLE or median(thin) > 0.5:
            said.append(
                f"{int(median(counts))} objects in a mask (most: {max(counts)}), {median(thin):.0%} of them nowhere 3 "
                "pixels wide; every value but 0 is an object: are these soft edges, or a picture?"
            )
        return said

    def _is_turned(self, i: int, found: LabelMap) -> bool:
        try:
            return orientation_of(self.raw(i)) >= SIDEWAYS and self.read(i).size == found.size != found.size[::-1]
        except UnreadableImage:
            return False  # listed where it is read


def _has_void_beside_objects(found: LabelMap) -> bool:
    others = found.labels[found.labels != _USUAL_VOID]
    return len(others) != len(found.labels) and len(others) > 0 and bool(others.max() < _USUAL_VOID // 2)
