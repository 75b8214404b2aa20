"""Twins: pictures that are made of one another, by encoding, size, crop, mirror, a slight turn, or a mark on them.

Two are taken for twins in two steps. Candidates are near each other by one of three measures: the perceptual hash, the
thumbnail, the features of a network where there is one. Each candidate is then held against the other, mirrored or
not, in many windows and slight turns of either, and the best correlation of the grey values decides: a network finds
pictures that show the same, and only the pixels know that they are the same.

All pairs are compared in blocks of products of matrices, so that memory grows with the number of images alone.

Legend: N images, D width of the features, P pairs, T ways to lay one picture on another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.curation.looks import EDGE, Looks, mirrored_hashes
from visionzoo.inference.frozen import whitened
from visionzoo.inference.progress import track

#: Of 63 bits of the hash, as many as may differ in a candidate.
_BITS = 16
#: Least correlation of thumbnails at half their edge in a candidate.
_THUMBNAIL = 0.86
#: Least cosine of whitened features in a candidate.
_FEATURES = 0.30
#: Nearest images that are candidates, by each measure; of more none is lost that is a copy of many.
_NEAREST = 20
#: Images compared with all others at a time.
BLOCK = 1024
#: Least correlation at half the edge of what is looked at whole.
_ROUGHLY = 0.8
#: Ways to lay a pair, the best at half the edge, that are looked at whole.
_WAYS = 8
#: Pairs held against each other at a time.
_PAIRS = 128
#: Grey values of twins correlate by more than this in the best window; with features that agree a little less will do.
SAME, SAME_WITH_FEATURES = 0.955, 0.88
#: Least cosine of whitened features for the lesser one.
_AGREE = 0.40


@dataclass(frozen=True)
class Twin:
    """Two images that are made of one picture."""

    one: int
    other: int
    alike: float  #: correlation of the grey values, laid on each other, in [-1, 1]
    how: str  #: ``same``, ``mirrored``, ``cropped``, ``turned`` or two of these


def find_twins(looks: Looks, features: np.ndarray | None = None) -> list[Twin]:
    """All pairs of twins, the surest first.

    Args:
        looks: of N images.
        features: (N, D) of the same images; None where no network was asked.
    """
    if len(looks.measures) < 2:
        return []
    white = None if features is None else whitened(features)
    pairs = _candidates(looks, white)
    values, ways = _laid(looks.thumbnails, pairs)
    agree = np.zeros(len(pairs)) if white is None else np.einsum("nd,nd->n", white[pairs[:, 0]], white[pairs[:, 1]])
    even = looks.contrast[pairs].min(1) < 0.02  # of pictures of one colour all are alike
    same = ((values > SAME) | ((values > SAME_WITH_FEATURES) & (agree > _AGREE))) & ~even
    found = [Twin(int(i), int(j), float(v), w) for (i, j), v, w, s in zip(pairs, values, ways, same, strict=True) if s]
    return sorted(found, key=lambda twin: -twin.alike)


def near_pairs(
    rows: np.ndarray, columns: np.ndarray, least: float, nearest: int = _NEAREST, *, title: str = "pairs"
) -> np.ndarray:
    """(P, 2) places i < j of rows and columns whose product is at least ``least``, at most ``nearest`` of each row.

    Args:
        rows: (N, D) float32.
        columns: (N, D) float32, of the same images.
        least: least product.
        nearest: most pairs of a row.
        title: of the progress bar.
    """
    found = [np.zeros((0, 2), np.int64)]
    left, right = torch.from_numpy(rows), torch.from_numpy(columns)
    for start in track(range(0, len(rows), BLOCK), -(-len(rows) // BLOCK), title):
        products = left[start : start + BLOCK] @ right.T
        here = torch.arange(len(products))
        products[here, start + here] = -torch.inf
        values, places = products.topk(min(nearest, len(rows)), dim=1)
        row, column = torch.nonzero(values >= least, as_tuple=True)
        pairs = torch.stack([row + start, places[row, column]], 1).numpy()
        found.append(np.sort(pairs, 1))
        # of many that are equally near, any may be the nearest ones: each also has the first of them
        best = values[:, :1]
        first = (products >= best - 1e-6).int().argmax(1)
        near = (best[:, 0] >= least).nonzero()[:, 0]
        found.append(np.sort(torch.stack([near + start, first[near]], 1).numpy(), 1))
    return np.unique(np.concatenate(found), axis=0)


def _candidates(looks: Looks, white: np.ndarray | None) -> np.ndarray:
    mirror = mirrored_hashes(looks.thumbnails)
    least = 63 - 2 * _BITS
    small, turned = _units(looks.thumbnails), _units(looks.thumbnails[:, :, ::-1])
    parts = [
        near_pairs(looks.hashes, looks.hashes, least, title="hashes"),
        near_pairs(looks.hashes, mirror, least, title="mirrored hashes"),
        near_pairs(small, small, _THUMBNAIL, title="thumbnails"),
        near_pairs(small, turned, _THUMBNAIL, title="mirrored thumbnails"),
    ]
    if white is not None:
        parts.append(near_pairs(white, white, _FEATURES, title="features"))
    return np.unique(np.concatenate(parts), axis=0)


def _units(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 256) grey values at half the edge, of mean 0 and length 1."""
    half = EDGE // 2
    values = thumbnails.reshape(-1, half, 2, half, 2).mean((2, 4), dtype=np.float32).reshape(-1, half * half)
    values -= values.mean(1, keepdims=True)
    units: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    return units


def _ways() -> tuple[Tensor, list[str]]:
    """(T, 2, 3) affine maps from one picture into another, and what each is called."""
    maps, names = [], []

    def add(scale: float, x: float, y: float, degrees: float, name: str) -> None:
        angle = np.deg2rad(degrees)
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        maps.append([[c, -s, x], [s, c, y]])
        names.append(name)

    add(1, 0, 0, 0, "same")
    for scale in (0.95, 0.89, 0.84, 0.8, 0.75):
        room = 1 - scale
        for x in np.linspace(-room, room, 5):
            for y in np.linspace(-room, room, 5):
                add(scale, x, y, 0, "cropped")
    for degrees in (-8, -6.5, -5, -3.5, -2, 2, 3.5, 5, 6.5, 8):
        add(1, 0, 0, degrees, "turned")
    return torch.tensor(maps, dtype=torch.float32), names


def _laid(thumbnails: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """((P,), P) the best correlation of each pair, and how it was laid."""
    maps, names = _ways()
    best = np.full(len(pairs), -1, np.float32)
    how = np.zeros(len(pairs), np.int64)
    for start in track(range(0, len(pairs), _PAIRS), -(-len(pairs) // _PAIRS), "twins"):
        some = pairs[start : start + _PAIRS]
        one, other = (torch.from_numpy(thumbnails[some[:, k]].astype(np.float32)) for k in (0, 1))
        # at half the edge first, which a quarter of the work tells most pairs apart by; whole by its best ways alone
        rough = _all_ways(F.avg_pool2d(one[:, None], 2)[:, 0], F.avg_pool2d(other[:, None], 2)[:, 0], maps)
        near = (rough > _ROUGHLY).any(1)
        if near.any():
            rows = start + near.nonzero()[:, 0].numpy()
            ways = rough[near].topk(_WAYS, dim=1).indices
            top, place = _some_ways(one[near], other[near], maps, ways).max(1)
            best[rows], how[rows] = top.numpy(), ways.gather(1, place[:, None])[:, 0].numpy()
    count = len(maps)
    said = []
    for way in how.tolist():
        mirrored, name = way // count >= 2, names[way % count]
        said.append(name if not mirrored else "mirrored" if name == "same" else f"mirrored, {name}")
    return best, said


def _all_ways(one: Tensor, other: Tensor, maps: Tensor) -> Tensor:
    """(P, 4 T) correlation of (P, H, W) pictures with (P, H, W) others in each way: windows of one or the other, then
    those with the other one mirrored."""
    return torch.cat([_correlation(whole, part, maps[None]) for whole, part in _laid_on(one, other)], 1)


def _some_ways(one: Tensor, other: Tensor, maps: Tensor, ways: Tensor) -> Tensor:
    """(P, K) as :func:`_all_ways`, in the (P, K) ways of each pair alone."""
    laid = _laid_on(one, other)
    kind, place = (ways // len(maps)).flatten(), (ways % len(maps)).flatten()
    pair = torch.arange(len(ways)).repeat_interleave(ways.shape[1])
    whole, part = (torch.stack([both[k] for both in laid])[kind, pair] for k in (0, 1))
    return _correlation(whole, part, maps[place][:, None]).view(ways.shape)


def _laid_on(one: Tensor, other: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (one, other), (other, one), (one, other.flip(2)), (other, one.flip(2))


def _correlation(whole: Tensor, part: Tensor, maps: Tensor) -> Tensor:
    """(P, T) correlation of windows of (P, H, W) pictures with other (P, H, W) pictures, where both have pixels.

    ``maps`` is (P, T, 2, 3), or (1, T, 2, 3) for all pairs."""
    own, ways, edge = len(maps), maps.shape[1], whole.shape[1]
    grid = F.affine_grid(maps.flatten(0, 1), [own * ways, 1, edge, edge], align_corners=False)
    grid = grid.reshape(own, ways * edge, edge, 2)
    there = (grid.abs() <= 1).all(-1).view(own, ways, -1).float()
    seen = F.grid_sample(
        whole[:, None], grid.expand(len(whole), -1, -1, -1), padding_mode="border", align_corners=False
    ).view(len(whole), ways, -1)
    other = part.reshape(len(whole), 1, -1)
    number = there.sum(-1)
    mean, mean_other = ((v * there).sum(-1, keepdim=True) / number[..., None] for v in (seen, other))
    a, b = (seen - mean) * there, (other - mean_other) * there
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt().clamp_min(1e-6)
