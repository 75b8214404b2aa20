"""Masks as run lengths (RLE): small, exact, and quick to measure; and how COCO writes them, polygons included.

A mask is read column by column; its counts are lengths of runs of zeros and ones in turn, zeros first. Compressed
counts are text: 5 bits of a number per character (from "0" on), a sixth bit for "goes on", and from the fourth number
on the difference to the one before the last (cocoapi, ``maskApi.c``, ``rleToString``).

Counts are read here and not by pycocotools: it does not check that they fill the mask, and damaged ones corrupt its
memory. Its polygons are used, so that a polygon covers the very pixels that COCO's own scores assume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from visionzoo.data.images import UnreadableImage
from visionzoo.limits import CORNERS, OUTLINE

#: Above what PIL takes for a decompression bomb: no image that can be read has more.
MOST_PIXELS = 2**28


@dataclass(frozen=True)
class RLE:
    """A mask as runs of pixels."""

    size: tuple[int, int]  #: (h, w)
    bounds: np.ndarray  #: (2 R,) int64: first pixel of a run, first after it, and so on, counted down the columns

    @classmethod
    def of(cls, columns: np.ndarray) -> RLE:
        """Of a transposed mask: (w, h) bool, contiguous."""
        flat = columns.reshape(-1)
        bounds = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        ends = ([0] if flat[0] else [], [flat.size] if flat[-1] else [])
        if ends[0] or ends[1]:
            bounds = np.concatenate((ends[0], bounds, ends[1])).astype(np.int64)
        return cls((columns.shape[1], columns.shape[0]), bounds)

    @classmethod
    def from_counts(cls, counts: np.ndarray, height: int, width: int) -> RLE:
        """Of lengths of all runs, background first."""
        return cls((height, width), np.cumsum(counts)[: len(counts) // 2 * 2])

    @cached_property
    def area(self) -> int:
        """Pixels."""
        return int((self.bounds[1::2] - self.bounds[::2]).sum())

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the outermost pixels; zeros for an empty mask."""
        if not len(self.bounds):
            return 0, 0, 0, 0
        h = self.size[0]
        starts, lasts = self.bounds[::2], self.bounds[1::2] - 1
        x0, x1 = int(starts[0]) // h, int(lasts[-1]) // h
        if (starts // h != lasts // h).any():  # a run that goes on in the next column has both edges
            return x0, 0, x1, h - 1
        return x0, int((starts % h).min()), x1, int((lasts % h).max())

    def columns(self) -> np.ndarray:
        """The transposed mask: (w, h) bool."""
        h, w = self.size
        counts = self._counts()
        pattern = np.arange(len(counts)) % 2 == 1
        return np.repeat(pattern, counts).reshape(w, h)

    def mask(self) -> np.ndarray:
        """(h, w) bool."""
        return self.columns().T

    def uncompressed(self) -> dict[str, Any]:
        """COCO's run lengths, the first of background: ``{"size": [h, w], "counts": [...]}``."""
        counts = self._counts().tolist()
        return {"size": list(self.size), "counts": counts}

    def coco(self) -> dict[str, Any]:
        """COCO's compressed form, through pycocotools; its counts are text, for JSON."""
        from pycocotools import mask as coco

        encoded = coco.frPyObjects(self.uncompressed(), *self.size)
        return {**encoded, "counts": encoded["counts"].decode("ascii")}

    def _counts(self) -> np.ndarray:
        """Lengths of all runs, background first (its first may be 0); an end of zero length is left out."""
        total = self.size[0] * self.size[1]
        edges = np.concatenate(([0], self.bounds, [total]))
        counts = np.diff(edges)
        return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def read_segmentation(segmentation: Any, height: int, width: int) -> RLE:
    """A mask of any form of COCO's ``segmentation``.

    Args:
        segmentation: ``{"size": [H, W], "counts": text or list}``, or a list of polygons ``[x1, y1, x2, y2, ...]`` in
            pixels, which are united (or one polygon by itself). Polygons of fewer than three corners cover nothing.
        height, width: of the image.

    Raises:
        UnreadableImage: for anything else, another size, counts that do not fill the mask, or polygons of more than
            corners or pixels of outline than :mod:`visionzoo.limits` allows.
    """
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise UnreadableImage(f"a mask of {height} x {width} pixels; need at least 1 x 1 and at most {MOST_PIXELS:,}")
    if isinstance(segmentation, list):
        return RLE.from_counts(_polygons(segmentation, height, width), height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise UnreadableImage("a segmentation is neither polygons nor run lengths with size and counts")
    if segmentation["size"] not in ([height, width], (height, width)):
        raise UnreadableImage(f"a mask has size {segmentation['size']} (H, W), its image is [{height}, {width}]")
    counts = segmentation["counts"]
    runs = _decompress(counts) if isinstance(counts, str | bytes) else _whole_numbers(counts)
    if (runs < 0).any() or runs.sum() != height * width:
        raise UnreadableImage(f"damaged run lengths: they fill {runs.sum()} of {height * width} pixels")
    return RLE.from_counts(runs, height, width)


def _decompress(counts: str | bytes) -> np.ndarray:
    codes = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        code -= 48
        if not 0 <= code < 64 or shift > 60:
            raise UnreadableImage("damaged run lengths: a character that is none of theirs")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise UnreadableImage("damaged run lengths: cut off inside a number")
    if any(abs(run) >= 1 << 40 for run in runs):
        raise UnreadableImage("damaged run lengths: a run longer than any image")
    return np.array(runs, dtype=np.int64)


def _whole_numbers(counts: Any) -> np.ndarray:
    if not isinstance(counts, list) or not all(isinstance(n, int) and 0 <= n < 1 << 40 for n in counts):
        raise UnreadableImage("run lengths must be text, or a list of whole numbers from 0 on")
    return np.array(counts, dtype=np.int64)


def _polygons(polygons: Sequence[Any], height: int, width: int) -> np.ndarray:
    corners: list[list[float]] = []
    if polygons and all(isinstance(x, int | float) for x in polygons):
        polygons = [polygons]  # one polygon without the list around it, which can mean nothing else
    for polygon in polygons:
        try:
            points = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError):
            points = np.empty((0, 0))
        if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
            raise UnreadableImage("a polygon must be a flat list of numbers x1, y1, x2, y2, ...")
        if len(points) >= 6:
            # Far outside, a corner only costs memory: edges are walked pixel by pixel.
            limit = np.array([width, height] * (len(points) // 2))
            corners.append(np.clip(points, -limit, 2 * limit).tolist())
    _refuse_endless(corners)
    if not corners:
        return np.array([height * width], dtype=np.int64)
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise ImportError("polygons are read by pycocotools; pip install 'visionzoo[sam]'") from error

    merged = coco.merge(coco.frPyObjects(corners, height, width))
    return _decompress(merged["counts"])


def _refuse_endless(polygons: list[list[float]]) -> None:
    """Raises UnreadableImage before a polygon takes gigabytes."""
    why = CORNERS.exceeded(sum(len(polygon) // 2 for polygon in polygons))
    if why is None:
        outline = 0.0
        for polygon in polygons:
            points = np.array(polygon).reshape(-1, 2)
            outline += np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
        why = OUTLINE.exceeded(int(min(outline, 2.0**62)))  # corners may be anywhere
    if why is not None:
        raise UnreadableImage(f"{why}, or write such a mask as run lengths")
