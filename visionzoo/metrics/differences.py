"""Whether one classifier is better than another, and how large a difference could have been seen.

Two networks that answered the same images are compared image by image. What else varies is the seed: of several
trainings each, both are resampled. Several comparisons at once pay for their number (Holm); many networks on many
tasks are ranked (Friedman, Nemenyi; Demšar 2006, JMLR 7, sections 3.2.2 to 3.2.3).

Legend: N images, S seeds of one network, T of the other, M comparisons, B blocks (tasks), K networks, P patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
#: Of the smallest difference that is called resolvable: how often it would be found.
POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """Accuracy of one network less that of another, in [-1, 1]."""

    value: float
    low: float  #: of the interval of ``level``
    high: float
    p: float  #: two-sided, of no difference
    resolvable: float  #: about the smallest true difference that is found with :data:`POWER`; above 1 there is none
    seeds: tuple[int, int]  #: trainings of each; with 1 and 1 it speaks of these two networks, not of their recipes


def paired_difference(
    one: np.ndarray, other: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare two networks by a paired bootstrap over images and seeds.

    Images are drawn with replacement, the same for both; the trainings of each are drawn with replacement too, their
    spread enlarged by S / (S - 1), which is what the bootstrap of few misses. Its standard error is held against
    Student's distribution with Welch's degrees of freedom, since three trainings say little about a spread. Of one
    training each the p is McNemar's.

    It errs to the careful side in two ways: what is noise of one image in one training counts up to three times (Owen
    2007, "The pigeonhole bootstrap", Ann. Appl. Stat. 1), and the trainings of one are drawn apart from those of the
    other, though those of the same seed may share their images. Where nothing varies, p is McNemar's and the interval
    is Clopper and Pearson's for the share of the images on which the two differ.

    Args:
        one: (S, N) or (N,) bool, whether each training had each image right.
        other: (T, N) or (N,) bool, of the same images in the same order.
        level: of the interval.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        ValueError: for other shapes, or for no images.
    """
    from scipy.stats import t

    a, b = (np.atleast_2d(np.asarray(x, bool)) for x in (one, other))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.size or not b.size:
        raise ValueError(f"answers {np.shape(one)} and {np.shape(other)} must be (S, N) and (T, N) with the same N > 0")
    n = a.shape[1]
    # images that all trainings answered alike are one pattern: a draw of images is a draw of counts of patterns
    patterns, counts = np.unique(np.concatenate([a, b]).T, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, counts / n, size=resamples) / n  # (resamples, P)
    of_a, of_b = seed_shares(rng, len(a), resamples), seed_shares(rng, len(b), resamples)
    each = of_a @ patterns[:, : len(a)].T - of_b @ patterns[:, len(a) :].T  # (resamples, P)
    error = float((drawn * each).sum(1).std(ddof=1))
    value = float(a.mean() - b.mean())
    freedom = _freedom(a, b)
    seeds = (len(a), len(b))
    if error < 1e-12:  # but for rounding, every image alike: they never differ, or always and to the same side
        reach = (2 if value else 1) * (1 - ((1 - level) / 2) ** (1 / n))
        low, high = max(-1.0, value - reach), min(1.0, value + reach)
        return Difference(value, low, high, mcnemar(a[0], b[0]), least_shown(n, level), seeds)
    half = float(t.ppf((1 + level) / 2, freedom)) * error
    p = mcnemar(a[0], b[0]) if len(a) == len(b) == 1 else float(2 * t.sf(abs(value) / error, freedom))
    resolvable = half + float(t.ppf(POWER, freedom)) * error
    if seeds == (1, 1):  # McNemar's test can call no smaller one a difference
        resolvable = max(resolvable, least_shown(n, level))
    return Difference(value, value - half, value + half, p, resolvable, seeds)


def least_shown(images: int, level: float = 0.95) -> float:
    """The smallest difference, a share of the images, that McNemar's test can call one; above 1 there is none.

    Of images that differ all to one side, so many are needed that 2 * 0.5 ** count is below 1 - level: 6 for 95 %.
    """
    return (math.floor(math.log2(2 / (1 - level))) + 1) / images


def seed_shares(rng: np.random.Generator, seeds: int, resamples: int) -> np.ndarray:
    """(resamples, S) share of each training in a mean over trainings drawn with replacement, their spread enlarged by
    S / (S - 1).

    The mean of one training is always that training.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    return 1 / seeds + (drawn - 1 / seeds) * np.sqrt(seeds / (seeds - 1))


def _freedom(a: np.ndarray, b: np.ndarray) -> float:
    """Welch and Satterthwaite's degrees of freedom of a sum of variances: of images, and of the seeds of each."""
    n = a.shape[1]
    parts = [(float((a.mean(0) - b.mean(0)).var()) / n, max(1, n - 1))]
    parts += [(float(x.mean(1).var(ddof=1)) / len(x), len(x) - 1) for x in (a, b) if len(x) > 1]
    below = sum(v**2 / f for v, f in parts)
    return sum(v for v, _ in parts) ** 2 / below if below else float(n)


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test: of the images that one of two networks has right, each has half.

    Args:
        one, other: (N,) bool, of the same images.
    """
    from scipy.stats import binomtest

    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    return 1.0 if first + second == 0 else float(binomtest(first, first + second).pvalue)


def error_agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Cohen's kappa of two (N,) bools, whether each network had each image right (arXiv 2006.16736, section 2).

    0 is what two networks of these accuracies share by chance; 1 is the same mistakes. NaN where both are always right
    or always wrong.
    """
    observed = float((one == other).mean())
    chance = float(one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean()))
    return float("nan") if chance == 1 else (observed - chance) / (1 - chance)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values of M tests (Holm 1979): below alpha where the test stands among the others.

    The chance of any false finding is then at most alpha, whatever the tests have to do with each other.
    """
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of K networks; 1 is best."""

    ranks: tuple[float, ...]
    p: float  #: Friedman's, of all being equal
    critical: float  #: Nemenyi's: mean ranks that are closer do not differ
    blocks: int
    alpha: float = 0.05  #: of both tests

    def groups(self) -> list[tuple[int, ...]]:
        """Networks that do not differ from each other, best first; none of these is inside another, none is alone.

        Where Friedman's test finds no difference, Nemenyi's is not asked: all are one group.
        """
        order = sorted(range(len(self.ranks)), key=lambda i: self.ranks[i])
        if self.p >= self.alpha:
            return [tuple(order)]
        found: list[tuple[int, ...]] = []
        for start, first in enumerate(order):
            near = tuple(i for i in order[start:] if self.ranks[i] - self.ranks[first] < self.critical)
            if len(near) > 1 and not any(set(near) <= set(g) for g in found):
                found.append(near)
        return found


def friedman_nemenyi(scores: np.ndarray, alpha: float = 0.05) -> Ranking:
    """Rank networks over blocks.

    Args:
        scores: (B, K), higher is better.
        alpha: of Friedman's test and of Nemenyi's critical difference.

    Raises:
        ValueError: for fewer than 3 networks or 2 blocks.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    if scores.ndim != 2 or scores.shape[0] < 2 or scores.shape[1] < 3:
        raise ValueError(f"scores {scores.shape} must be (B, K) of at least 2 blocks and 3 networks")
    blocks, k = scores.shape
    ranks = rankdata(-scores, axis=1).mean(0)
    same = bool((scores == scores[:, :1]).all())  # the statistic is then 0 / 0
    p = 1.0 if same else float(friedmanchisquare(*scores.T).pvalue)
    q = float(studentized_range.ppf(1 - alpha, k, np.inf)) / np.sqrt(2)
    return Ranking(tuple(float(r) for r in ranks), p, float(q * np.sqrt(k * (k + 1) / (6 * blocks))), blocks, alpha)
