"""Which images to label next: those that a classifier is unsure of, and that differ among each other.

Legend: N unlabelled images, M labelled ones, D width of the features, K classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from visionzoo.data.sources.reading import check_choice

#: ``badge``: k-means++ on the gradients of the last layer under the likeliest label (arXiv 1906.03671), far where an
#: answer is unsure, and apart where features or answers differ. ``coreset``: the image that is furthest from all
#: labelled and chosen ones (arXiv 1708.00489). ``random`` beside them.
Choice = Literal["badge", "coreset", "random"]
CHOICES = ("badge", "coreset", "random")


def choose_next(
    features: np.ndarray,
    count: int,
    *,
    probabilities: np.ndarray | None = None,
    labelled: np.ndarray | None = None,
    method: Choice = "badge",
    seed: int = 0,
) -> np.ndarray:
    """(count,) rows of images to label, the most telling first.

    Args:
        features: (N, D) of images without a label.
        count: how many to choose, at most N.
        probabilities: (N, K) by a classifier on what is labelled. Without it ``badge`` spreads over the features.
        labelled: (M, D) features of the images that have a label, for ``coreset``.
        method: one of :data:`CHOICES`.
        seed: of what is drawn.

    Raises:
        ValueError: for a count outside 1..N or an unknown method.
    """
    check_choice("method", method, CHOICES)
    if not 1 <= count <= len(features):
        raise ValueError(f"{count} images to label next are asked for, and there are {len(features)} without a label")
    rng = np.random.default_rng(seed)
    if method == "random":
        return rng.choice(len(features), count, replace=False)
    centred = features - features.mean(0)
    unit = (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)).astype(np.float64)
    if method == "coreset":
        return _furthest(unit, count, None if labelled is None else _like(labelled, features), rng)
    if probabilities is None:
        answers = np.ones((len(features), 1))
    else:
        answers = probabilities.astype(np.float64).copy()
        answers[np.arange(len(answers)), answers.argmax(1)] -= 1
    return _spread_out(answers, unit, count, rng)


def _like(labelled: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(M, D) features of labelled images, centred and scaled as those of the others are."""
    centred = labelled - features.mean(0)
    scaled: np.ndarray = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    return scaled


def _spread_out(answers: np.ndarray, unit: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ on the outer products of (N, K) and (N, D), which are never written out: their inner products are those
    of the parts, multiplied."""
    lengths = (answers**2).sum(1) * (unit**2).sum(1)
    chosen = [int(lengths.argmax())]
    away = np.full(len(unit), np.inf)
    while True:
        last = chosen[-1]
        inner = (answers @ answers[last]) * (unit @ unit[last])
        away = np.minimum(away, np.maximum(lengths + lengths[last] - 2 * inner, 0))
        away[chosen] = 0
        if len(chosen) == count:
            return np.array(chosen)
        total = away.sum()
        if total > 0:
            chosen.append(int(rng.choice(len(away), p=away / total)))
        else:  # all others are copies of what is chosen, or wholly sure
            rest = np.setdiff1d(np.arange(len(unit)), chosen)
            chosen.append(int(rng.choice(rest)))


def _furthest(unit: np.ndarray, count: int, labelled: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """k-centre, greedily."""
    away = np.full(len(unit), np.inf)
    if labelled is not None and len(labelled):
        away = np.min([2 - 2 * unit @ part for part in labelled], axis=0)
    chosen: list[int] = []
    while len(chosen) < count:
        last = int(away.argmax()) if np.isfinite(away).all() else int(rng.integers(len(unit)))
        chosen.append(last)
        away = np.minimum(away, 2 - 2 * unit @ unit[last])
        away[chosen] = -1
    return np.array(chosen)
