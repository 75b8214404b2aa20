"""Probabilities that mean what they say: how far they are off, one temperature that mends them, and sets of labels that
hold the truth at a chosen rate (conformal prediction).

Everything is fitted on held-out images and holds for others like them: drawn as those were, in any order.

Legend: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from visionzoo.metrics.classification import check_range

#: Of the penalty on labels that are far down the list, RAPS (arXiv 2009.14193, section 3): added for each rank after
#: ``FREE_RANKS``. Fixed beforehand, since what is tuned on the images that give the threshold would cost the guarantee.
PENALTY, FREE_RANKS = 0.01, 5
#: Bounds of a temperature: without them labels that carry no signal, or no mistakes at all, have no best one.
COLDEST, HOTTEST = 0.01, 100.0


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, section 2); NaN for no images.

    Images are binned by their highest probability, in ``bins`` bins of equal width; the result is the mean of
    |accuracy - mean confidence| over bins, weighted by their counts.

    Args:
        probabilities: (N, K), each row summing to 1. Logits are refused: the number would mean nothing.
        labels: (N,) int64 in [0, K).
    """
    return reliability_gap(reliability(probabilities, labels, bins))


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    """What a reliability diagram shows: the bins of :func:`calibration_error`.

    Args:
        probabilities: (N, K), each row summing to 1.
        labels: (N,) int64 in [0, K).
        bins: of equal width.

    Returns:
        (bins, 3) float64: images, their mean confidence, and the share of them that is right; 0 where there are none.
    """
    _check(probabilities, labels)
    _check_probabilities(probabilities)
    confidence, predicted = probabilities.double().clamp(0, 1).max(1)
    return confidence_bins(confidence, predicted == labels, bins)


def confidence_bins(confidence: Tensor, right: Tensor, bins: int = 15) -> Tensor:
    """:func:`reliability` where the highest probabilities are all that is known.

    Args:
        confidence: (N,) in [0, 1]; 1 belongs to the last bin.
        right: (N,) bool, whether the likeliest class is the right one.
        bins: of equal width.
    """
    confidence = confidence.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, bins - 1)
    table = torch.zeros(bins, 3, dtype=torch.float64, device=confidence.device)
    table.index_add_(0, place, torch.stack([torch.ones_like(confidence), confidence, right.double()], 1))
    table[:, 1:] /= table[:, :1].clamp(min=1)
    return table


def reliability_gap(table: Tensor) -> float:
    """The calibration error of (bins, 3) as :func:`reliability` gives them; NaN for no images."""
    images = table[:, 0]
    return float((images * (table[:, 1] - table[:, 2]).abs()).sum() / images.sum())


def fit_temperature(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> float:
    """The T for which ``softmax(logits / T)`` has the least cross-entropy (arXiv 1706.04599, section 4.2).

    In 1 / T the cross-entropy is convex, so Newton's steps on its slope, kept inside a bracket that shrinks, find the
    one minimum; nothing depends on a start or a learning rate.

    Args:
        logits: (N, K).
        labels: (N,) int64 in [0, K).
        smoothing: share of each target that is spread over all classes. ``1 / (N + 1)`` counts as one more image, of
            a class drawn at random: without a single mistake there is then a best temperature, and not the coldest.

    Returns:
        T in [``COLDEST``, ``HOTTEST``].

    Raises:
        ValueError: for no images, shapes that do not fit, or logits that are not finite.
    """
    _check(logits, labels)
    if len(labels) == 0:
        raise ValueError("a temperature needs images; there are none")
    if not logits.isfinite().all():
        raise ValueError("a temperature needs finite logits; the model gives NaN or infinity")
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    aim = (1 - smoothing) * float(centred.gather(1, labels[:, None]).mean())  # the centred logits' mean is 0
    low, high = 1 / HOTTEST, 1 / COLDEST
    scale = 1.0
    for _ in range(100):
        weights = (scale * centred).softmax(1)
        means = (weights * centred).sum(1)
        slope = float(means.mean()) - aim
        low, high = (low, scale) if slope > 0 else (scale, high)
        curvature = float(((weights * centred.square()).sum(1) - means.square()).mean())
        step = scale - slope / curvature if curvature > 0 else math.nan
        new = step if low < step < high else math.sqrt(low * high)
        if abs(new - scale) <= 1e-12 * scale:
            break
        scale = new
    return 1 / new


def adaptive_scores(
    probabilities: Tensor, u: float | Tensor = 1.0, penalty: float = PENALTY, free_ranks: int = FREE_RANKS
) -> Tensor:
    """How much had to be said before each label: small for likely ones (APS, arXiv 2006.02544; RAPS, arXiv 2009.14193).

    The score of the label of rank r is ``p(1) + ... + p(r) - u * p(r) + penalty * max(0, r - free_ranks)``, for
    probabilities sorted from the highest; equal ones in the order of the classes.

    Args:
        probabilities: (N, K), each row summing to 1.
        u: in [0, 1], a number or (N,). Drawn uniformly for each image it is the randomised form, whose coverage is
            exact for every model, and which leaves an image without any label where that is what exactness takes. 1 is
            the deterministic form that predictors use: what is likelier than the label. It gives the same image the
            same answer always, and the likeliest label the score 0, so that no set is ever empty; sets hold the truth
            more often than asked for only where the likeliest label alone does. 0 counts the label itself.
        penalty: 0 is APS.
        free_ranks: labels that have no penalty.

    Returns:
        (N, K) float64.
    """
    _check_probabilities(probabilities)
    ordered, order = probabilities.double().sort(dim=1, descending=True, stable=True)
    own = u.double()[:, None] if isinstance(u, Tensor) else u
    ranks = torch.arange(1, ordered.shape[1] + 1, dtype=torch.float64, device=ordered.device)
    # what comes before a label is summed without it: at u = 1 the likeliest has 0 to the bit
    before = ordered.cumsum(1).roll(1, 1)
    before[:, 0] = 0
    scores = before + (1 - own) * ordered + penalty * (ranks - free_ranks).clamp_min(0)
    return torch.empty_like(scores).scatter_(1, order, scores)


def conformal_thresholds(scores: Tensor, levels: Sequence[float]) -> Tensor:
    """Below or at the threshold of a level, the score of a new image lies at least that often (split conformal).

    It is the ceil((N + 1) * level)-th smallest score: N + 1 because the new image is as likely to take each place
    among the others (arXiv 2107.07511, section 1). Without ties it lies there at most 1 / (N + 1) more often.

    Args:
        scores: (N,), one for each calibration image: that of its label.
        levels: each in (0, 1).

    Returns:
        (len(levels),) float64; infinity for a level above N / (N + 1), which N images cannot tell.

    Raises:
        ValueError: for a level outside (0, 1) or scores that are not finite.
    """
    if wrong := [level for level in levels if not 0 < level < 1]:
        raise ValueError(f"the level {wrong[0]} must be above 0 and below 1")
    if not scores.isfinite().all():
        raise ValueError("the scores of calibration images must be finite")
    ordered = torch.cat([scores.double().sort().values, scores.new_tensor([math.inf], dtype=torch.float64)])
    # the least bit less: (N + 1) * level is a whole number more often than its rounded product
    places = [math.ceil((len(scores) + 1) * level - 1e-9) for level in levels]
    return ordered[[place - 1 for place in places]]


def label_scores(probabilities: Tensor, labels: Tensor, **form: float | Tensor) -> Tensor:
    """(N,) float64: :func:`adaptive_scores` of the right labels, what :func:`conformal_thresholds` takes for sets."""
    _check(probabilities, labels)
    return adaptive_scores(probabilities, **form).gather(1, labels[:, None])[:, 0]  # type: ignore[arg-type]


def unfamiliarity(probabilities: Tensor) -> Tensor:
    """(N, K) -> (N,) float64, 1 - the highest probability: what :func:`conformal_thresholds` takes for ``unknown``.

    An image above the threshold of the level 1 - rate is called unknown; of known images at most that rate is.
    """
    return 1 - probabilities.double().max(1).values


def _check(scores: Tensor, labels: Tensor) -> int:
    """Number of classes, after checking that scores and labels belong together."""
    if scores.ndim != 2 or labels.ndim != 1 or len(scores) != len(labels):
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must be (N, K) and (N,) with the same N"
        )
    check_range("labels", labels, scores.shape[1])
    return scores.shape[1]


def _check_probabilities(probabilities: Tensor) -> None:
    sums = probabilities.double().sum(1)
    # 16-bit probabilities over many classes do not sum to 1 exactly
    if len(sums) and (float(probabilities.min()) < 0 or not torch.allclose(sums, torch.ones_like(sums), atol=0.02)):
        raise ValueError("probabilities must be at least 0 and sum to 1 in each row; apply softmax to logits first")
