"""Images that are not like the others, each with the reason.

What is odd is so by the data's own measure: a value is held against the median of all images in units of the median
distance from it, so that a set of night photographs has no dark ones. Light, contrast and shape have floors beside.

Legend: N images, D width of the features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visionzoo.curation.looks import Looks

#: Median distances from the median beyond which a measure is odd; of features, whose distances have a longer tail.
_FAR, _FAR_FEATURES = 6.0, 5.0
#: Contrast (grey values in [0, 1]) below which a picture is empty, brightness beyond which it is dark or bright.
_EMPTY, _DARK, _BRIGHT = 0.01, 0.10, 0.95
#: Share of the others' median sharpness below which a picture is blurred.
_BLURRED = 0.5
#: Times the usual shape or size that are odd.
_SHAPE, _SIZE = 2.0, 4.0
#: Distance of features of length 1 below which two images are the same.
_SAME = 1e-3
#: Neighbours that say how far an image is from others.
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Odd:
    """An image that is not like the others."""

    row: int
    #: ``far from its class``, ``of another kind``, ``empty``, ``dark``, ``bright``, ``blurred``, ``shape``...
    reason: str
    score: float  #: how far it is, in the units of the reason; only of use to sort one reason's images
    text: str  #: for people, with the values


def odd_looks(looks: Looks) -> list[Odd]:
    """What the pixels say: empty, dark, bright, blurred, of odd size or shape, grey among coloured or the reverse.

    Args:
        looks: of N images.
    """
    if not len(looks.measures):
        return []
    found: list[Odd] = []
    empty = looks.contrast < _EMPTY

    def add(reason: str, rows: np.ndarray, scores: np.ndarray, text: str, *values: np.ndarray) -> None:
        for row in np.flatnonzero(rows):
            found.append(Odd(int(row), reason, float(scores[row]), text.format(*(value[row] for value in values))))

    light, contrast = looks.brightness, looks.contrast
    add("empty", empty, -contrast, "contrast {:.3f}", contrast)
    low, high = _deviation(light)
    add("dark", (light < _DARK) & (low > 1) & ~empty, -light, "brightness {:.2f} of 1", light)
    add("bright", (light > _BRIGHT) & (high > 1) & ~empty, light, "brightness {:.2f} of 1", light)
    usual = max(float(np.median(looks.sharpness)), 1e-6)
    ratio, tail = looks.sharpness / usual, _deviation(np.log(looks.sharpness + 1e-4))[0]
    blurred = (ratio < _BLURRED) & (tail > 2.5) & ~empty
    add("blurred", blurred, -ratio, "{:.0%} of the usual sharpness", ratio)
    shape, area = np.log(looks.width / looks.height), np.log(looks.width * looks.height)
    # against both ways round: a set of landscapes and portraits has two usual shapes
    off = np.minimum(abs(shape - np.median(shape)), abs(-shape - np.median(shape)))
    long = (off > np.log(_SHAPE)) & (off > _FAR * _spread(shape))
    add("shape", long, off, "{:.0f} x {:.0f} pixels", looks.width, looks.height)
    size = abs(area - np.median(area)) / 2
    add("size", (size > np.log(_SIZE)) & (size > _FAR * _spread(area) / 2), size, "{:.0f} x {:.0f} pixels",
        looks.width, looks.height)  # fmt: skip
    grey = looks.colour < 0.01
    if 0 < grey.mean() < 0.05:
        add("grey", grey & ~empty, -looks.colour, "without colour, among coloured images")
    return sorted(found, key=lambda odd: (odd.reason, -odd.score))


def odd_features(features: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...] = ()) -> list[Odd]:
    """What a network says: far from all others of the set, or far from its class though near another's images.

    Args:
        features: (N, D).
        labels: (N,) class indices, -1 for none; None where there are no classes.
        classes: K names.
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    count = len(features)
    if count < 3 * _NEIGHBOURS:
        return []
    unit = normalize(features - features.mean(0))
    near, places = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1).fit(unit).kneighbors(unit)
    distance = near[:, 1:].mean(1)
    far = _deviation(distance)[1]
    usual = float(np.median(distance))
    # where most are one picture nothing is usual
    strange = np.flatnonzero((far > _FAR_FEATURES) & (usual > _SAME))
    found = [
        Odd(
            int(row),
            "of another kind",
            float(far[row]),
            f"{distance[row] / usual:.1f} times as far from its neighbours as is usual",
        )
        for row in strange
    ]
    if labels is not None:
        strangers = (labels[places[:, 1:]] != labels[:, None]).mean(1)
        for k in np.unique(labels[labels >= 0]):
            members = np.flatnonzero(labels == k)
            if len(members) < _NEIGHBOURS:
                continue
            away = np.linalg.norm(unit[members] - unit[members].mean(0), axis=1)
            far_away = _deviation(away)[1]
            for row, value in zip(members, far_away, strict=True):
                if value > 3 and strangers[row] >= 0.8:
                    text = f"{strangers[row]:.0%} of its neighbours are no {classes[k] if classes else k}"
                    found.append(Odd(int(row), "far from its class", float(value), text))
    return sorted(found, key=lambda odd: (odd.reason, -odd.score))


def _spread(values: np.ndarray) -> float:
    """Median distance from the median, as the standard deviation of a normal distribution would be; above 0."""
    return 1.4826 * float(np.median(abs(values - np.median(values)))) + 1e-6


def _deviation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) and (N,) how far each of (N,) values is below and above the median, in spreads."""
    away = (values - np.median(values)) / _spread(values)
    return -away, away
