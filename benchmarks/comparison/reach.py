"""What it costs to train a network to a stated accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from comparison.models import Entry
from comparison.summary import Score, SeedRun, Spread, Summary


@dataclass(frozen=True)
class Reach:
    """One network and one accuracy: the cheapest training of each seed that reaches it."""

    entry: Entry
    target: float  #: top-1, 0 to 1
    seeds: int  #: of the network
    found: tuple[tuple[Score, SeedRun], ...]  #: one for each seed that reaches it

    @property
    def ways(self) -> list[str]:
        """Recipes and shares of the images that did it, the most frequent first."""
        named = [f"{score.recipe}, {100 * score.fraction:g} %" for score, _ in self.found]
        return sorted(dict.fromkeys(named), key=lambda n: -named.count(n))

    def spread(self, name: str) -> Spread:
        """Of a field of :class:`comparison.summary.SeedRun`, over the seeds that reach it."""
        return Spread.of([getattr(run, name) for _, run in self.found])


def usual_target(summary: Summary) -> float | None:
    """The median of the networks' best accuracies, down to a whole per cent so that it can be named."""
    best = [max(s.accuracy.mean for s in summary.scores if s.entry == e) for e in {s.entry for s in summary.scores}]
    return int(100 * statistics.median(best)) / 100 if best else None


def reach(summary: Summary, targets: Sequence[float]) -> list[Reach]:
    """For each network and each accuracy, the training of least time of each seed, over all recipes and shares.

    Args:
        summary: of the comparison.
        targets: top-1, 0 to 1; empty for :func:`usual_target`.
    """
    usual = usual_target(summary)
    wanted = list(targets) or ([] if usual is None else [usual])
    found = []
    for target in wanted:
        for entry in dict.fromkeys(s.entry for s in summary.scores):
            runs = [(s, run) for s in summary.scores if s.entry == entry for run in s.runs]
            seeds = sorted({run.seed for _, run in runs})
            good = {seed: [(s, r) for s, r in runs if r.seed == seed and r.accuracy >= target] for seed in seeds}
            cheapest = tuple(min(these, key=lambda one: one[1].seconds) for these in good.values() if these)
            found.append(Reach(entry, target, len(seeds), cheapest))
    return found
