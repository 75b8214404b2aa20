"""Which held-out images of a classifier are kept as small pictures, for a page that shows them.

Legend: B images of a batch, N images so far.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from visionzoo.tasks.gathering import from_all_ranks

#: Longest edge of a picture, in pixels. Smaller images stay as they are.
EDGE = 96
#: Pictures of a run, and of one pair of label and answer, at most.
MOST, PER_PAIR = 1200, 40
#: The most confident mistakes, and the least sure answers, that are kept whatever their pair.
LISTED = 40


class KeptPicture(NamedTuple):
    """One image that was kept."""

    position: int  #: of the sample in its source
    label: int
    predicted: int
    confidence: float  #: probability of the predicted class
    picture: bytes  #: WebP


class PictureChoice:
    """A bounded choice of images, made while they pass by.

    Of each pair of label and answer some are kept: the surest of mistakes, the least sure of what is right; more of
    the pairs that are frequent, where there is no room for all. Beside these come the surest mistakes and the least
    sure answers of all. Up to ``MOST`` images the order does not matter; of more, a pair that turns out frequent late
    may have lost some.

    Args:
        wanted: positions that are kept in any case.
    """

    def __init__(self, wanted: frozenset[int] = frozenset()) -> None:
        self.wanted = wanted
        self._rows = np.empty((0, 4))  # position, label, predicted, confidence
        self._pixels: list[np.ndarray] = []
        self._counts: Counter[tuple[float, float]] = Counter()  # images of each label and answer

    def add(self, logits: Tensor, labels: Tensor, images: Tensor, index: Tensor) -> None:
        """Take a batch into account: (B, K), (B,), (B, C, H, W) uint8 and (B,) positions."""
        confidence, predicted = logits.float().softmax(1).max(1)
        new = torch.stack([index.double(), labels.double(), predicted.double(), confidence.double()], 1).cpu().numpy()
        self._counts.update(map(tuple, new[:, 1:3].tolist()))
        rows, before = np.concatenate([self._rows, new]), len(self._rows)
        kept = choose(rows, self._counts, self.wanted)
        fresh = [int(i) - before for i in kept if i >= before]
        small = dict(zip(fresh, small_pictures(images[fresh]), strict=True)) if fresh else {}
        self._pixels = [self._pixels[i] if i < before else small[int(i) - before] for i in kept]
        self._rows = rows[kept]

    def finish(self) -> list[KeptPicture]:
        """What was kept on all ranks, the most telling first; call it on every rank, and then not again."""
        own = [
            KeptPicture(int(p), int(t), int(a), float(c), as_webp(pixels))
            for (p, t, a, c), pixels in zip(self._rows.tolist(), self._pixels, strict=True)
        ]
        kept, counts = from_all_ranks(own), Counter[tuple[float, float]]()
        for part in from_all_ranks([self._counts]):
            counts.update(part)
        if not kept:
            return []
        rows = np.array([picture[:4] for picture in kept], dtype=np.float64)
        return [kept[i] for i in choose(rows, counts, self.wanted)]


def choose(rows: np.ndarray, counts: Mapping[tuple[float, float], int], wanted: frozenset[int]) -> np.ndarray:
    """Which rows are kept: (n,) indices, the most telling first.

    Args:
        rows: (N, 4) of position, label, predicted class and confidence.
        counts: images of each label and predicted class.
        wanted: positions that are kept in any case.
    """
    position, confidence = rows[:, 0], rows[:, 3]
    wrong = rows[:, 1] != rows[:, 2]
    telling = np.where(wrong, -confidence, confidence)
    # within each pair, the most telling first; the position decides between equals
    order = np.lexsort((position, telling, rows[:, 2], rows[:, 1]))
    pairs = rows[order, 1:3]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(1)
    starts = np.flatnonzero(first)
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows)) - np.repeat(starts, np.diff([*starts, len(rows)]))
    listed = np.zeros(len(rows), dtype=bool)
    listed[np.lexsort((position, np.where(wrong, -confidence, 2)))[:LISTED]] = True
    listed[np.lexsort((position, confidence))[:LISTED]] = True
    if wanted:
        listed |= np.isin(position, np.fromiter(wanted, dtype=np.float64))
    # an equal share of each pair, so that many images of a frequent one come before the only image of a rare one;
    # and mistakes before what is right
    images = np.array([counts[label, answer] for label, answer in rows[:, 1:3].tolist()])
    level = np.where(listed, -1, (rank + 1) / images + ~wrong)
    best = np.lexsort((position, telling, level))
    return best[listed[best] | (rank[best] < PER_PAIR)][: MOST + len(wanted)]


def small_pictures(images: Tensor) -> list[np.ndarray]:
    """(B, C, H, W) uint8 -> B of (h, w, C) uint8 on the CPU, C being 1 or 3, the longest edge at most :data:`EDGE`."""
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    scale = EDGE / max(images.shape[-2:])
    if scale < 1:
        size = [max(1, round(edge * scale)) for edge in images.shape[-2:]]
        pixels = images if images.device.type == "cpu" else images.float()  # bytes, four times as fast, on a CPU alone
        small = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False).float()
        images = small.round().clamp(0, 255).to(torch.uint8)
    return list(images.permute(0, 2, 3, 1).cpu().numpy())


def as_webp(pixels: np.ndarray) -> bytes:
    """(h, w, C) uint8 -> WebP; small ones, whose every pixel counts, without loss."""
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=max(pixels.shape) <= 40, quality=80, method=3)
    return file.getvalue()


def side_by_side(tiles: Sequence[np.ndarray], edge: int = 128) -> bytes:
    """Pictures (h, w, C) uint8 next to each other, each in a square of ``edge`` pixels, as one WebP.

    Small ones are enlarged by a whole factor, so that their pixels stay squares.
    """
    gap = 6
    sheet = Image.new("RGBA", (len(tiles) * (edge + gap) - gap, edge))
    for i, tile in enumerate(tiles):
        pixels = tile[:, :, 0] if tile.ndim == 3 and tile.shape[2] not in (1, 3) else tile.squeeze()
        picture = Image.fromarray(pixels).convert("RGBA")
        times = edge // max(picture.size)
        if times > 1:
            picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        elif max(picture.size) > edge:
            picture.thumbnail((edge, edge))
        sheet.paste(picture, (i * (edge + gap) + (edge - picture.width) // 2, (edge - picture.height) // 2))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=80, method=3)
    return file.getvalue()
