"""From records of single runs to what the tables and the plots show."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from comparison.models import Entry


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and the sample's standard deviation; None from one seed."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass
class Score:
    """One model by one recipe on one share of the images."""

    entry: Entry
    recipe: str
    fraction: float
    train_images: int
    steps: int
    accuracy: Spread
    ece: Spread
    minutes: float  #: of training, median over seeds
    corrupted: dict[str, list[Spread]] = field(default_factory=dict)  #: accuracy at severities 1 to 5
    clean: Spread | None = None  #: accuracy on the same images without corruption
    mean_corrupted: Spread | None = None  #: over all corruptions and severities; the spread is that of seeds


@dataclass
class Speed:
    """One model's cost; None where it ran out of memory or failed."""

    entry: Entry
    inference: dict[str, Any] | None
    training: dict[str, Any] | None


@dataclass(frozen=True)
class Frozen:
    """A linear classifier on a pretrained backbone, on one share of the images."""

    model: str
    fraction: float
    train_images: int
    accuracy: Spread


@dataclass
class Summary:
    """Everything that is shown."""

    speeds: list[Speed]
    scores: list[Score]
    frozen: list[Frozen]
    problems: list[str]  #: what did not run, and why

    def score(self, entry: Entry, recipe: str) -> Score | None:
        """The score with most training images."""
        found = [s for s in self.scores if s.entry == entry and s.recipe == recipe]
        return max(found, key=lambda s: s.fraction, default=None)

    def speed(self, entry: Entry) -> Speed:
        return next(s for s in self.speeds if s.entry == entry)


def summarize(entries: Sequence[Entry], records: Sequence[dict[str, Any]]) -> Summary:
    """Group records of pieces by what they are about."""
    problems = []
    for record in records:
        if record["status"] != "done":
            about = ", ".join(f"{v}" for v in record["about"].values())
            problems.append(f"{about}: {record['status']}" + (f" ({record['why']})" if record.get("why") else ""))
    done = [r for r in records if r["status"] == "done"]
    speeds = []
    for entry in entries:
        jobs = {
            r["about"]["job"]: r["result"] for r in done if r["kind"] == "speed" and r["about"]["model"] == entry.name
        }
        speeds.append(Speed(entry, jobs.get("inference"), jobs.get("training")))
    scores = []
    for entry in entries:
        mine = [r for r in done if r["kind"] == "train" and r["about"]["model"] == entry.name]
        for recipe, fraction in dict.fromkeys((r["about"]["recipe"], r["about"]["fraction"]) for r in mine):
            same = [r["result"] for r in mine if (r["about"]["recipe"], r["about"]["fraction"]) == (recipe, fraction)]
            scores.append(_score(entry, recipe, fraction, same))
    scores.sort(key=lambda s: (s.recipe, s.fraction))
    return Summary(speeds, scores, _frozen(done), problems)


def _frozen(done: Sequence[dict[str, Any]]) -> list[Frozen]:
    mine = [r for r in done if r["kind"] == "probe"]
    found = []
    for model, fraction in sorted({(r["about"]["model"], r["about"]["fraction"]) for r in mine}):
        same = [r["result"] for r in mine if (r["about"]["model"], r["about"]["fraction"]) == (model, fraction)]
        spread = Spread.of([r["accuracy"] for r in same])
        found.append(Frozen(model, fraction, same[0]["train_images"], spread))
    return found


def _score(entry: Entry, recipe: str, fraction: float, results: list[dict[str, Any]]) -> Score:
    score = Score(
        entry,
        recipe,
        fraction,
        train_images=results[0]["train_images"],
        steps=results[0]["steps"],
        accuracy=Spread.of([r["accuracy"] for r in results]),
        ece=Spread.of([r["ece"] for r in results]),
        minutes=statistics.median(r["train_seconds"] for r in results) / 60,
    )
    with_them = [r for r in results if r.get("corrupted")]
    if with_them:
        names = with_them[0]["corrupted"]
        score.corrupted = {
            name: [Spread.of(five) for five in zip(*(r["corrupted"][name] for r in with_them), strict=True)]
            for name in names
        }
        score.clean = Spread.of([r["clean_accuracy_of_these"] for r in with_them])
        means = [statistics.fmean(v for five in r["corrupted"].values() for v in five) for r in with_them]
        score.mean_corrupted = Spread.of(means)
    return score


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the (cost, value) points that no other beats, by rising cost.

    A point is beaten by another that costs no more and is worth no less, and is better in one of the two.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        cost, value = points[i]
        if not front or value > points[front[-1]][1] or (cost, value) == points[front[-1]]:
            front.append(i)
    return front
