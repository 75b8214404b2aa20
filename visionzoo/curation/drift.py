"""Is what arrives still what was there before: two sets of images compared by their features.

The distance is the maximum mean discrepancy (Gretton et al., 2012) of a Gaussian kernel as wide as the median distance.
What it amounts to follows from splitting the first set against itself, many times: as many images of it against as
many others of it, as of it against the second set.

Legend: N and M images, D width of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Images of each set that are compared, at most: the kernel has the square of their number.
_MOST = 1500
#: Splits of the first set against itself, and draws of the second.
_SPLITS = 200
#: Least images of a set.
LEAST = 20


@dataclass(frozen=True)
class Drift:
    """How far a second set is from a first one."""

    distance: float  #: squared maximum mean discrepancy
    split: float  #: that of the first set split against itself, in the mean
    times: float  #: distance in standard deviations of the splits' distances, above their mean: 0 for no drift
    p: float  #: share of the splits that are as far apart
    images: tuple[int, int]  #: compared, of each set

    @property
    def drifted(self) -> bool:
        """Whether fewer than one split in a hundred is as far apart."""
        return self.p < 0.01


def find_drift(before: np.ndarray, after: np.ndarray, *, seed: int = 0) -> Drift:
    """Compare two sets of features.

    Args:
        before: (N, D).
        after: (M, D).
        seed: of the splits.

    Raises:
        ValueError: for fewer than 20 images in either.
    """
    if min(len(before), len(after)) < LEAST:
        raise ValueError(f"drift needs {LEAST} images or more on either side, not {len(before)} and {len(after)}")
    rng = np.random.default_rng(seed)
    one = before[rng.permutation(len(before))[:_MOST]].astype(np.float64)
    other = after[rng.permutation(len(after))[:_MOST]].astype(np.float64)
    scale = one.std(0) + 1e-6 * one.std()
    x = np.concatenate([one, other]) / np.where(scale > 0, scale, 1)
    squares = (x**2).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0)
    count = len(one)
    wide = max(float(np.median(distances[:count, :count])), 1e-12)
    kernel = np.exp(-distances / wide)
    size = min(count // 2, len(other))
    selves, crosses = np.empty(_SPLITS), np.empty(_SPLITS)
    for i in range(_SPLITS):
        order = rng.permutation(count)
        selves[i] = _discrepancy(kernel, order[:size], order[size : 2 * size])
        crosses[i] = _discrepancy(kernel, order[:size], count + rng.permutation(len(other))[:size])
    distance = float(crosses.mean())
    p = (1 + int((selves >= distance).sum())) / (1 + _SPLITS)
    times = (distance - float(selves.mean())) / max(float(selves.std()), 1e-12)
    return Drift(distance, float(selves.mean()), times, p, (count, len(other)))


def _discrepancy(kernel: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased estimate, of rows of a kernel: (n,) and (n,)."""
    n = len(one)
    within = [(kernel[np.ix_(rows, rows)].sum() - kernel[rows, rows].sum()) / (n * (n - 1)) for rows in (one, other)]
    return float(within[0] + within[1] - 2 * kernel[np.ix_(one, other)].mean())
