"""What frozen features say of each image's class, by classifiers that were not fitted on the image.

Legend: N images, D width of the features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionzoo.curation.labels import find_label_issues, find_multi_label_issues
from visionzoo.inference.frozen import folds_of
from visionzoo.inference.linear import fit_path, tensors
from visionzoo.inference.probe import knn_probabilities

#: Strengths of the penalty that are tried. Weaker ones learn wrong labels by heart.
STRENGTHS = (1e-1, 3e-2, 1e-2)
#: The one of a linear classifier for each label by itself.
USUAL = 3e-2
NEIGHBOURS = 10
#: Images x features x classes above which nobody would wait: of 384 features and 1,000 classes, 26,000 images.
MOST = 10**10
#: Share that is given to all classes alike before k-NN is multiplied in: ten votes do not make a class impossible.
_DOUBT = 0.01


@dataclass(frozen=True)
class OutOfSample:
    """Probabilities, each of a classifier that was not fitted on the image."""

    values: np.ndarray  #: (N, K) float64
    name: str  #: of the classifier
    accuracy: float  #: share of the images whose label is the likeliest; of all labels, where there are several


def out_of_sample(
    features: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray, seed: int = 0
) -> OutOfSample | None:
    """Probabilities by five-fold cross-validation, in two rounds: the second learns nothing from labels that are
    probably wrong by the first.

    A linear classifier and its product with k-NN are asked, and the one of the lesser Brier score is taken.

    Args:
        features: (N, D).
        labels: (N,) class indices.
        classes: K.
        groups: (N,) number of the group of each image; copies of one picture are in one, which is held out whole.
        seed: of the folds.

    Returns:
        None where not each image can be held out: too few differ, or there are too many (:data:`MOST`).
    """
    folds = folds_of(labels, groups, features.shape[1], classes, seed, most=MOST)
    if sum(map(len, folds)) < len(labels):
        return None
    doubtful = np.zeros(len(labels), bool)
    for _ in range(2):
        found = min(_asked(features, labels, classes, folds, doubtful), key=lambda each: _brier(each.values, labels))
        doubtful = find_label_issues(found.values, labels, "both")
    return found


def out_of_sample_multi(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> OutOfSample:
    """As :func:`out_of_sample` for several labels an image: a linear classifier for each.

    Args:
        features: (N, D).
        labels: (N, K), 1 where an image has a label, else 0.
        groups: (N,) as there.
        seed: of the folds.
    """
    from sklearn.model_selection import GroupKFold

    number = min(5, len(np.unique(groups)))
    folds = [held for _, held in GroupKFold(number, shuffle=True, random_state=seed).split(features, groups=groups)]
    doubtful = np.zeros(labels.shape, bool)
    values = np.zeros(labels.shape)
    for _ in range(2):
        for held in folds:
            kept = np.setdiff1d(np.arange(len(labels)), held)
            for k in range(labels.shape[1]):
                values[held, k] = _one_label(features, labels[:, k], kept[~doubtful[kept, k]], held)
        doubtful = find_multi_label_issues(values, labels, "both")
    return OutOfSample(values, "linear", float(((values > 0.5) == (labels > 0.5)).mean()))


def better_than_chance(found: OutOfSample, labels: np.ndarray) -> bool:
    """Whether more labels are right than by naming the most frequent class always, by more than luck (p < 0.01).

    Args:
        found: of the images.
        labels: (N,) class indices.
    """
    from scipy.stats import binom

    count = len(labels)
    usual = np.bincount(labels).max() / count
    return bool(binom.sf(round(found.accuracy * count) - 1, count, usual) < 0.01)


def _one_label(features: np.ndarray, given: np.ndarray, kept: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(M,) probability of a label in the M images held out; its share where all of the others agree."""
    if len(np.unique(given[kept])) < 2:
        return np.full(len(held), given[kept].mean() if len(kept) else 0.5)
    x, y = tensors(features[kept], given[kept])
    head = fit_path(x, y, 2, (USUAL,))[0]
    probabilities: np.ndarray = head.logits(tensors(features[held], given[held])[0]).softmax(1)[:, 1].double().numpy()
    return probabilities


def _asked(
    features: np.ndarray, labels: np.ndarray, classes: int, folds: Sequence[np.ndarray], doubtful: np.ndarray
) -> list[OutOfSample]:
    """What each kind of classifier says that learns nothing from what is doubtful."""
    x, y = tensors(features, labels)
    linear = np.zeros((len(STRENGTHS), len(labels), classes))
    neighbours = np.zeros((len(labels), classes))
    for held in folds:
        kept = np.setdiff1d(np.flatnonzero(~doubtful), held)
        for place, head in enumerate(fit_path(x[kept], y[kept], classes, STRENGTHS)):
            linear[place, held] = head.logits(x[held]).double().softmax(1).numpy()
        count = min(NEIGHBOURS, len(kept))
        neighbours[held] = knn_probabilities(features[kept], labels[kept], features[held], count, classes)
    best = min(linear, key=lambda values: _brier(values, labels))
    both = np.sqrt(best * (neighbours + _DOUBT))
    named = {"linear": best, "linear and k-NN": both / both.sum(1, keepdims=True)}
    return [OutOfSample(v, name, float((v.argmax(1) == labels).mean())) for name, v in named.items()]


def _brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance from the labels: a proper score, and bounded, so that no wrong label decides alone."""
    return float(np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(1).mean())
