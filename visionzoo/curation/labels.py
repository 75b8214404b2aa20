"""Confident learning (arXiv 1911.00068): which labels are probably wrong, by models that did not see the images.

A class is confidently seen in an image where its probability reaches what it has, in the mean, among the images that
are labelled as it (equation 2). Counting which class is so seen under which label gives the confident joint (equation
1); scaled to the counts of the labels it estimates how many images of each label belong to each other class (equation
3), and so many are found, those first that the models are surest of (section 3.2).

Legend: N images, K classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from visionzoo.data.sources.reading import check_choice

#: How images are chosen once the joint is known: by the margin of the other class (PBNR), by that and a low probability
#: of their own (C+NR), or those that the confident joint has counted itself.
Method = Literal["prune_by_noise_rate", "both", "confident_learning"]
METHODS = ("prune_by_noise_rate", "both", "confident_learning")
#: ``self_confidence`` is the probability of the label, ``normalized_margin`` that less the best other, in [0, 1].
Quality = Literal["self_confidence", "normalized_margin"]
#: Probabilities that differ by less are the same.
_TINY = 1e-6


def find_label_issues(
    probabilities: np.ndarray, labels: np.ndarray, method: Method = "prune_by_noise_rate"
) -> np.ndarray:
    """(N,) bool: whether the label of each image is probably wrong.

    Args:
        probabilities: (N, K), each of a model that was not fitted on the image.
        labels: (N,) class indices in [0, K).
        method: one of :data:`METHODS`.

    Raises:
        ValueError: for an unknown method, or probabilities that are not finite or of another shape.
    """
    check_choice("method", method, METHODS)
    _check(probabilities, labels)
    if method == "confident_learning":
        seen = confidently_seen(probabilities, labels)
        found = (seen >= 0) & (seen != labels)
    else:
        joint = _leave_one(confident_joint(probabilities, labels))
        found = _by_noise_rate(probabilities, labels, joint)
        if method == "both":
            found &= _by_class(probabilities, labels, joint)
    own = probabilities.copy()
    own[np.arange(len(labels)), labels] += _TINY
    return found & (own.argmax(1) != labels)  # nobody doubts a label that the models would give too


def find_multi_label_issues(
    probabilities: np.ndarray, labels: np.ndarray, method: Method = "prune_by_noise_rate"
) -> np.ndarray:
    """(N, K) bool: whether each label is probably wrong, there or missing. Each class is asked for by itself.

    Args:
        probabilities: (N, K) in [0, 1]; rows need not sum to 1.
        labels: (N, K), 1 where an image has a label and 0 elsewhere.
        method: one of :data:`METHODS`.

    Raises:
        ValueError: as :func:`find_label_issues`.
    """
    columns = [
        find_label_issues(np.stack([1 - p, p], 1), of, method)
        for p, of in zip(probabilities.T, labels.T.astype(np.int64), strict=True)
    ]
    return np.stack(columns, 1)


def label_quality(probabilities: np.ndarray, labels: np.ndarray, by: Quality = "self_confidence") -> np.ndarray:
    """(N,) in [0, 1], low where a label is probably wrong.

    Args:
        probabilities: (N, K).
        labels: (N,) class indices.
        by: ``self_confidence``, or ``normalized_margin``.
    """
    check_choice("by", by, ("self_confidence", "normalized_margin"))
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    if by == "self_confidence":
        return own
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    return (own - others.max(1) + 1) / 2


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K, K) int64: how many images of each label (rows) belong to each class (columns), as far as can be told.

    Args:
        probabilities: (N, K).
        labels: (N,) class indices.
    """
    return _calibrated(_counted(confidently_seen(probabilities, labels), labels, probabilities.shape[1]), labels)


def confidently_seen(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) the class that is confidently seen in each image; -1 where none is.

    Args:
        probabilities: (N, K).
        labels: (N,) class indices.
    """
    there = np.unique(labels)
    thresholds = np.full(probabilities.shape[1], np.inf)  # a class without images is seen in none
    thresholds[there] = [max(probabilities[labels == k, k].mean(), 2 * _TINY) for k in there]
    sure = probabilities >= thresholds - _TINY
    # of several the likeliest of all classes, which need not be one of the sure ones: so do the authors
    seen = np.where(sure.sum(1) > 1, probabilities.argmax(1), sure.argmax(1))
    return np.where(sure.any(1), seen, -1)


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or probabilities.shape[1] < 2:
        raise ValueError(f"probabilities are {probabilities.shape} for {len(labels)} labels; need (N, K), K at least 2")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite; leave out images that no model was asked for")
    if len(labels) and not 0 <= labels.min() <= labels.max() < probabilities.shape[1]:
        raise ValueError(f"labels must be in 0..{probabilities.shape[1] - 1}, not {labels.min()}..{labels.max()}")


def _counted(seen: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(K, K), label by class that is confidently seen; a class is sure of one image at least."""
    # the memory's order is that of the authors' code, so that sums round alike and ties are broken alike
    joint = np.zeros((classes, classes), np.int64, order="F")
    np.add.at(joint, (labels[seen >= 0], seen[seen >= 0]), 1)
    np.fill_diagonal(joint, joint.diagonal().clip(1))
    return joint


def _calibrated(joint: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K, K) whose rows sum to the counts of the labels (equation 3)."""
    counts = np.bincount(labels, minlength=len(joint))
    found = (joint.T / joint.sum(1) * counts).T
    return _whole(found / found.sum() * counts.sum())  # all but 1, and what ties are broken by


def _leave_one(joint: np.ndarray) -> np.ndarray:
    """(K, K) in which every class keeps an image; the others of its label give what that takes."""
    given = joint.T
    kept = np.maximum(given.diagonal(), 1)
    others = np.maximum(np.count_nonzero(given, axis=0) - 1.0, 1.0)
    found = np.maximum(given - (kept - given.diagonal()) / others, 0)
    np.fill_diagonal(found, kept)
    return _whole(found).T


def _whole(values: np.ndarray) -> np.ndarray:
    """(K, K) rounded, each row keeping its sum: what was rounded furthest gives or takes."""
    found = values.round()
    for row, exact in zip(found, values, strict=True):
        while missing := round(float(exact.sum() - row.sum())):
            step = 1 if missing > 0 else -1
            row[np.argsort(exact - row)[::-step][: abs(missing)]] += step
    return found.astype(np.int64)


def _by_noise_rate(probabilities: np.ndarray, labels: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """(N,) bool: for each label and other class, as many as the joint says, of the largest margin."""
    found = np.zeros(len(labels), bool)
    for k in range(len(joint)):
        members = np.flatnonzero(labels == k)
        if len(members) <= 1:
            continue
        for other in np.flatnonzero(joint[k]):
            if other != k:
                margin = probabilities[members, other] - probabilities[members, k]
                found[members[np.argsort(-margin)[: joint[k, other]]]] = True
    return found


def _by_class(probabilities: np.ndarray, labels: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """(N,) bool: for each label, as many as the joint says in all, of its least probability."""
    found = np.zeros(len(labels), bool)
    for k in range(len(joint)):
        members = np.flatnonzero(labels == k)
        if len(members) > 1 and (count := len(members) - joint[k, k]) > 0:
            found[members[np.argsort(probabilities[members, k])[:count]]] = True
    return found
