"""Where a model is weak: classes, clusters of features, properties of images; and whether that is chance.

Each slice is held against all other images by Fisher's exact test, one-sided, and the probabilities of all slices are
corrected together (Holm, 1979), so that among hundreds of slices none is called weak by luck more often than
:data:`LEVEL` says.

Legend: N images, D width of the features, K classes, S slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visionzoo.curation.looks import Looks

#: Chance that anything is called weak where nothing is.
LEVEL = 0.05
#: Least images of a slice: of fewer no weakness could be told from chance, and each test makes the others weaker.
_LEAST = 15
#: Images of a cluster, about; and most clusters.
_CLUSTER, _CLUSTERS = 60, 20
#: Measures of images that are cut into fifths.
_CUT = ("brightness", "contrast", "sharpness", "colour", "area", "shape")


@dataclass(frozen=True)
class Slice:
    """Some images, and how many of them were answered rightly."""

    name: str
    rows: np.ndarray  #: (n,) of the images
    accuracy: float  #: share of them that is right
    rest: float  #: share of all others that is right
    p: float  #: probability of so few right ones by chance, corrected for the number of slices
    weak: bool


def weak_slices(
    right: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    features: np.ndarray | None = None,
    looks: Looks | None = None,
    *,
    seed: int = 0,
) -> list[Slice]:
    """All slices that were tested, the surest weakness first.

    Args:
        right: (N,) bool, whether each image was answered rightly by a model that had not seen it.
        labels: (N,) class indices.
        classes: K names.
        features: (N, D), for clusters.
        looks: of the images, for properties.
        seed: of the clusters.
    """
    parts = [(f"class {classes[k]}", np.flatnonzero(labels == k)) for k in np.unique(labels)]
    if features is not None and len(right) >= 4 * _LEAST:
        parts += _clusters(features, labels, classes, seed)
    if looks is not None:
        parts += _properties(looks)
    return tested_slices(right, [(name, rows) for name, rows in parts if _LEAST <= len(rows) < len(right)])


def tested_slices(right: np.ndarray, parts: list[tuple[str, np.ndarray]]) -> list[Slice]:
    """The slices with their corrected probabilities, the least first.

    Args:
        right: (N,) bool.
        parts: S names and rows.
    """
    from scipy.stats import hypergeom

    total, good = len(right), int(right.sum())
    counts = [(len(rows), int(right[rows].sum())) for _, rows in parts]
    # Fisher's one-sided test: as few right ones, or fewer, among as many drawn without looking
    p = np.array([hypergeom.cdf(few, total, good, n) for n, few in counts])
    corrected = _holm(p)
    found = [
        Slice(name, rows, few / n, (good - few) / max(1, total - n), float(q), bool(q < LEVEL))
        for (name, rows), (n, few), q in zip(parts, counts, corrected, strict=True)
    ]
    return sorted(found, key=lambda part: (part.p, part.accuracy))


def _holm(p: np.ndarray) -> np.ndarray:
    """(S,) probabilities corrected for their number."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected


def _clusters(
    features: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], seed: int
) -> list[tuple[str, np.ndarray]]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    number = int(np.clip(len(features) // _CLUSTER, 2, _CLUSTERS))
    width = min(32, *features.shape)
    reduced = PCA(width, random_state=seed).fit_transform(normalize(features))
    of = KMeans(number, n_init=3, random_state=seed).fit_predict(reduced)
    found = []
    for k in range(number):
        rows = np.flatnonzero(of == k)
        if len(rows):
            counts = np.bincount(labels[rows], minlength=len(classes))
            top = [classes[c] for c in np.argsort(-counts, kind="stable")[:2] if counts[c]]
            found.append((f"cluster {k + 1}, mostly {' and '.join(top)}", rows))
    return found


def _properties(looks: Looks) -> list[tuple[str, np.ndarray]]:
    measured = {name: getattr(looks, name) for name in _CUT[:4]}
    measured["area"], measured["shape"] = looks.width * looks.height, looks.width / looks.height
    words = {"area": ("small", "large"), "shape": ("tall", "wide")}
    found = []
    for name, values in measured.items():
        low, high = np.quantile(values, [0.2, 0.8])
        less, more = words.get(name, (f"little {name}", f"much {name}"))
        if low < high:
            found += [(less, np.flatnonzero(values <= low)), (more, np.flatnonzero(values >= high))]
    return found
