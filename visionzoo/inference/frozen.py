"""What frozen features alone are worth: k-NN and linear heads, scored on training images that they have not seen.

Legend: N images, D width of the features, K classes, F folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzoo.data.sources.base import Source
from visionzoo.data.sources.split import stratified_split
from visionzoo.inference.linear import PRIOR_ALONE, Linear, fit_path, tensors
from visionzoo.inference.probe import knn_probabilities

#: Strengths of the penalty that are tried; scikit-learn's C is 1 / (strength * N).
STRENGTHS = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)
#: Neighbours that are tried.
NEIGHBOURS = (1, 3, 5, 10, 20)
#: What is taken unless another strength is better by more than chance: with few images what is held out says little of
#: them, and choosing the luckiest costs accuracy (on Imagenette two points at two images of a class).
USUAL = 3e-3
FOLDS = 5
#: Above this many images x features x classes, one held-out fifth takes the place of the folds.
_MUCH = 100_000_000
#: Whitened features that are more alike than this (cosine) come from the same picture. Of 2,000 photographs of ten
#: classes no two reach 0.58, and copies at JPEG quality 50 or 70 % of the size stay above 0.77 (features of a ViT-S).
TWINS = 0.75
#: Thumbnails of the same picture correlate by more than this.
_SAME = 0.99
#: Share of the mean variance that is added to each direction's, or noise would weigh as much as what is seen.
_RIDGE = 0.01


@dataclass(frozen=True)
class Candidate:
    """A classifier on frozen features, and what it is worth on images that it was not fitted on."""

    name: str  #: ``k-NN``, ``linear`` or ``text``
    setting: str  #: what was chosen, for people
    accuracy: float  #: share in [0, 1] of held-out training images; NaN where none could be held out
    images: int  #: how many were held out, in turns
    probabilities: Tensor | None = None  #: (N, K), of each image by the fit that did not see it; NaN where none did
    strength: float = 0.0  #: of the penalty, for a linear one


def folds_of(
    labels: np.ndarray, groups: np.ndarray, width: int, classes: int, seed: int, *, most: int = _MUCH
) -> list[np.ndarray]:
    """Positions that are held out in turns; none where no class has two images that differ.

    Args:
        labels: (N,) class indices.
        groups: (N,) number of the group of each image; a group is never torn apart.
        width: D.
        classes: K.
        seed: of the choice.
        most: N * D * K above which one part is held out, once.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    members = max((len(np.unique(groups[labels == k])) for k in np.unique(labels)), default=0)
    if members < 2:
        return []
    if len(labels) * width * classes > most:
        return [stratified_split(labels, 1 / FOLDS, seed)[1]]
    splitter = StratifiedGroupKFold(min(FOLDS, members), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the smallest class has fewer members than there are folds
        found = [held for _, held in splitter.split(np.zeros(len(labels)), labels, groups)]
    # what is left must know at least two classes
    return [held for held in found if len(held) and len(np.unique(np.delete(labels, held))) > 1]


def whitened(features: np.ndarray) -> np.ndarray:
    """(N, D) features whose directions all have the same variance, each of length 1.

    Args:
        features: (N, D).
    """
    centred = features - features.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    white = centred @ directions / np.sqrt(np.maximum(variances, 0) + _RIDGE * variances.mean() + 1e-12)
    unit: np.ndarray = white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)
    return unit


def twin_groups(features: np.ndarray, labels: np.ndarray, *, block: int = 2048) -> np.ndarray:
    """(N,) the group of each image: those whose features are all but equal to another's are in one.

    A copy in the part that is held out would be recognised, not classified. Only images of a class are compared, by the
    cosine of features whose directions all have the same variance: else the few that tell classes apart decide.

    Args:
        features: (N, D).
        labels: (N,) class indices.
        block: images compared at a time.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    unit = whitened(features)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        for start in range(0, len(members), block):
            part = members[start : start + block]
            near, other = np.nonzero(unit[part] @ unit[members].T > TWINS)
            rows.append(part[near])
            columns.append(members[other])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(row), bool), (row, column)), shape=(len(labels), len(labels)))
    return connected_components(graph, directed=False)[1]


def same_pixels(source: Source, places: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(N,) the groups of :func:`twin_groups`, without images whose pixels say otherwise.

    To a network that knows little of such images many look alike. Of each group those stay together whose thumbnails,
    in grey, correlate by more than 0.99; the others are alone.

    Args:
        source: of the images.
        places: (N,) of each image in it.
        groups: (N,) as :func:`twin_groups` gives them.
    """
    found, free = groups.copy(), int(groups.max(initial=0)) + 1
    sizes = np.bincount(groups)
    for group in np.flatnonzero(sizes > 1):
        members = np.flatnonzero(groups == group)
        thumbnails = np.stack([_thumbnail(source, int(places[i])) for i in members])
        near = thumbnails @ thumbnails.T > _SAME
        for row, i in enumerate(members):
            first = int(np.flatnonzero(near[row])[0]) if near[row].any() else row
            found[i] = free + first
        free += len(members)
    return found


def _thumbnail(source: Source, place: int) -> np.ndarray:
    """(256,) grey values of an image at 16 x 16 pixels, of mean 0 and length 1; zeros for an even one."""
    pixels = np.asarray(source.read(place).convert("L").resize((16, 16), Image.Resampling.BOX), np.float64).ravel()
    pixels -= pixels.mean()
    length = float(np.linalg.norm(pixels))
    return pixels / length if length > 1e-6 else np.zeros_like(pixels)


def joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) groups that hold together what is in one group of either, both (N,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(one)
    first = count + np.unique(one, return_inverse=True)[1]
    second = 2 * count + np.unique(other, return_inverse=True)[1]
    rows, columns = np.tile(np.arange(count), 2), np.concatenate([first, second])
    graph = coo_matrix((np.ones(2 * count, bool), (rows, columns)), shape=(3 * count, 3 * count))
    return connected_components(graph, directed=False)[1][:count]


def score_neighbours(features: np.ndarray, labels: np.ndarray, classes: int, folds: Sequence[np.ndarray]) -> Candidate:
    """k-NN, a yardstick: it is not a head that a network could carry.

    Args:
        features: (N, D).
        labels: (N,) class indices.
        classes: K.
        folds: F times the positions that are held out.
    """
    tried = [k for k in NEIGHBOURS if k <= len(labels) - max((len(fold) for fold in folds), default=0)] or [1]
    found = {k: torch.full((len(labels), classes), float("nan")) for k in tried}
    for kept, held in _pairs(folds, len(labels)):
        for k in tried:
            votes = knn_probabilities(features[kept], labels[kept], features[held], k, classes)
            found[k][held] = torch.from_numpy(votes).float()
    best = max(tried, key=lambda k: (_accuracy(found[k], labels), k))
    held_out = sum(map(len, folds))
    return Candidate("k-NN", f"k = {best}", _accuracy(found[best], labels), held_out, found[best])


def score_linear(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    folds: Sequence[np.ndarray],
    prior: Linear | None = None,
) -> Candidate:
    """A linear head, its penalty chosen on what is held out.

    Args:
        features: (N, D).
        labels: (N,) class indices.
        classes: K.
        folds: F times the positions that are held out.
        prior: a head made of texts, that weights are pulled towards.
    """
    name = "linear" if prior is None else "text"
    strengths = STRENGTHS if prior is None else (*STRENGTHS, PRIOR_ALONE)
    x, y = tensors(features, labels)
    if not folds:
        return Candidate(name, f"penalty {USUAL:g}, not chosen", float("nan"), 0, None, USUAL)
    found = torch.full((len(strengths), len(labels), classes), float("nan"))
    for kept, held in _pairs(folds, len(labels)):
        for place, head in enumerate(fit_path(x[kept], y[kept], classes, strengths, prior)):
            found[place, held] = head.logits(x[held]).softmax(1)
    best = _choose(found, labels, strengths)
    setting = "the texts alone" if strengths[best] == PRIOR_ALONE else f"penalty {strengths[best]:.3g}"
    accuracy = _accuracy(found[best], labels)
    return Candidate(name, setting, accuracy, sum(map(len, folds)), found[best], strengths[best])


def fit_head(
    features: np.ndarray, labels: np.ndarray, classes: int, strength: float, prior: Linear | None = None
) -> Linear:
    """A linear head on all of (N, D) features with (N,) class indices, see :func:`fit_path`."""
    return fit_path(*tensors(features, labels), classes, (strength,), prior)[0]


def _seen(probabilities: Tensor) -> np.ndarray:
    """(N,) whether each image was held out at some time."""
    return ~probabilities[:, 0].isnan().numpy()


def _accuracy(probabilities: Tensor, labels: np.ndarray) -> float:
    seen = _seen(probabilities)
    right = probabilities[seen].argmax(1).numpy() == labels[seen]
    return float(right.mean()) if len(right) else float("nan")


def _choose(found: Tensor, labels: np.ndarray, strengths: Sequence[float]) -> int:
    """Place of the strength to take: the usual one, or the best of those that beat it by more than a standard error.

    Args:
        found: (S, N, K) probabilities of S strengths; NaN where nobody was asked.
        labels: (N,) class indices.
        strengths: S of them.
    """
    seen = _seen(found[0])
    right = found[:, seen].argmax(2).numpy() == labels[seen]
    usual = strengths.index(USUAL)
    gains = right.astype(float) - right[usual]
    error = gains.std(1) / np.sqrt(gains.shape[1])
    better = [i for i in range(len(strengths)) if gains[i].mean() > error[i]]
    return max(better, key=lambda i: (gains[i].mean(), strengths[i]), default=usual)


def _pairs(folds: Sequence[np.ndarray], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(kept, held) positions of each fold."""
    for held in folds:
        yield np.setdiff1d(np.arange(count), held), held
