"""Which networks are on the Pareto front of accuracy against cost, and how sure that is.

Legend: R draws, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from comparison.summary import Score, Summary
from visionzoo.metrics.differences import seed_shares

DRAWS = 2000


@dataclass(frozen=True)
class FrontRow:
    """One network by one recipe, trained on the most images: its place among the others."""

    score: Score
    #: Milliseconds of one image: low quartile, median, high; None where none was timed.
    latency: tuple[float, float, float] | None
    minutes: float
    by_latency: float | None  #: share of draws in which it is on the front; None where that is not known
    by_minutes: float | None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the (cost, value) points that no other beats, by rising cost.

    A point is beaten by another that costs no more and is worth no less, and is better in one of the two.
    """
    costs, values = (np.array([[p[i] for p in points]]).reshape(1, -1) for i in (0, 1))
    return sorted(np.flatnonzero(on_front(costs, values)[0]).tolist(), key=lambda i: points[i])


def on_front(costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(R, P) bool: whether no other point of the same draw beats it.

    Args:
        costs: (R, P).
        values: (R, P).
    """
    cost, other_cost = costs[:, :, None], costs[:, None, :]
    value, other_value = values[:, :, None], values[:, None, :]
    better = (other_cost < cost) | (other_value > value)
    return ~((other_cost <= cost) & (other_value >= value) & better).any(2)


def fronts(summary: Summary, recipes: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> list[FrontRow]:
    """Draw trainings and rounds of timing with replacement, and see how often each network is on the front.

    Trainings are drawn as in :func:`visionzoo.metrics.differences.paired_difference`; a latency is the median of its
    drawn rounds. Of one training nothing is known of another, so its shares are None.

    Args:
        summary: of the comparison.
        recipes: columns that take part.
        draws: R.
        seed: of them.
    """
    rng = np.random.default_rng(seed)
    entries = dict.fromkeys(s.entry for s in summary.scores)
    shown = [score for e in entries for r in recipes if (score := summary.score(e, r)) is not None]
    known = bool(shown) and min(score.accuracy.count for score in shown) > 1
    timed = {e: summary.single_images(e) for e in entries}
    latencies = {e: _medians(rng, times, draws) for e, times in timed.items() if times}
    accuracy, minutes = [], []
    for score in shown:
        shares = seed_shares(rng, len(score.runs), draws)  # the same trainings for both
        accuracy.append(shares @ np.array([r.accuracy for r in score.runs]))
        minutes.append(shares @ np.array([r.seconds / 60 for r in score.runs]))
    by_minutes = _share(minutes, accuracy) if known else {}
    here = [i for i, score in enumerate(shown) if score.entry in latencies]
    drawn = [latencies[shown[i].entry] for i in here]
    by_latency = _share(drawn, [accuracy[i] for i in here]) if known and here else {}
    places = {i: by_latency.get(k) for k, i in enumerate(here)}
    return [
        FrontRow(score, summary.latency(score.entry), score.minutes, places.get(i), by_minutes.get(i))
        for i, score in enumerate(shown)
    ]


def _medians(rng: np.random.Generator, times: Sequence[float], draws: int) -> np.ndarray:
    """(R,) medians of times drawn with replacement."""
    return np.median(rng.choice(np.array(times), (draws, len(times))), axis=1)


def _share(costs: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> dict[int, float]:
    """Of P times (R,), by position."""
    return dict(enumerate(on_front(np.stack(costs, 1), np.stack(values, 1)).mean(0).tolist()))
