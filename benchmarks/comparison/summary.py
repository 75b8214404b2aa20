"""From records of single runs to what the tables and the plots show."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from comparison.models import Entry
from comparison.options import PRETRAINED

MB = 1e6


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


@dataclass(frozen=True)
class SeedRun:
    """What one training of a score came to, and cost, the pretraining before it included."""

    seed: int
    accuracy: float
    seconds: float  #: of training steps
    steps: int
    images: int  #: seen, repetitions counted
    gmacs: float  #: 1e9 multiply-adds, a backward pass as two forward


@dataclass(frozen=True)
class Files:
    """The ONNX files of one precision, over the seeds whose export was not refused."""

    megabytes: Spread
    p50: Spread  #: milliseconds of one image
    p95: Spread
    images_per_second: Spread
    accuracy: Spread
    change: Spread  #: accuracy less that of the same training in PyTorch
    same: Spread  #: share of held-out images whose answer is PyTorch's


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
    runs: tuple[SeedRun, ...]  #: one for each seed
    corrupted: dict[str, list[Spread]] = field(default_factory=dict)  #: accuracy at severities 1 to 5
    clean: Spread | None = None  #: accuracy on the same images without corruption
    by_corruption: dict[str, Spread] = field(default_factory=dict)  #: mean of the severities, with the spread of seeds
    mean_corrupted: Spread | None = None  #: over all corruptions and severities, with the spread of seeds
    files: dict[str, Files] = field(default_factory=dict)  #: by precision, of what was exported

    @property
    def minutes(self) -> float:
        """Of training and of the pretraining before it, median over seeds."""
        return statistics.median(run.seconds for run in self.runs) / 60


@dataclass
class Speed:
    """One model's cost; None where it ran out of memory or failed."""

    entry: Entry
    inference: dict[str, Any] | None
    training: dict[str, Any] | None


@dataclass(frozen=True)
class Pretrained:
    """The masked pretraining of one network."""

    entry: Entry
    method: str  #: mae or simmim
    steps: int
    gmacs: float  #: 1e9 multiply-adds of the loss of one image, forward, decoder included
    seconds: dict[int, float]  #: of training steps, by seed


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
    pretrained: list[Pretrained]
    problems: list[str]  #: what did not run, and why

    @property
    def largest(self) -> float:
        """The largest share of the training images that anything was trained on."""
        return max((s.fraction for s in self.scores), default=1.0)

    def score(self, entry: Entry, recipe: str) -> Score | None:
        """The score on the most training images of the comparison; None where this recipe was not run on as many."""
        most = (entry, recipe, self.largest)
        return next((s for s in self.scores if (s.entry, s.recipe, s.fraction) == most), None)

    def speed(self, entry: Entry) -> Speed:
        return next(s for s in self.speeds if s.entry == entry)

    def single_images(self, entry: Entry) -> list[float]:
        """Milliseconds of each timed image; their median alone in older records, nothing where none was timed."""
        inference = self.speed(entry).inference
        if inference is None:
            return []
        return inference["latency_ms"].get("rounds") or [inference["latency_ms"]["p50"]]

    def latency(self, entry: Entry) -> tuple[float, float, float] | None:
        """Milliseconds of one image: low quartile, median, high; None where none was timed."""
        times = self.single_images(entry)
        if not times:
            return None
        low, middle, high = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
        return low, middle, high


def summarize(entries: Sequence[Entry], records: Sequence[dict[str, Any]], batch_size: int) -> Summary:
    """Group records of pieces by what they are about.

    Args:
        entries: the networks.
        records: of finished and failed pieces.
        batch_size: images of a training step.
    """
    problems = []
    for record in records:
        if record["status"] != "done":
            problems.append(
                f"{_told(record['about'])}: {record['status']}" + (f" ({record['why']})" if record.get("why") else "")
            )
    done = [r for r in records if r["status"] == "done"]
    problems += _not_exported(done)
    speeds = []
    for entry in entries:
        jobs = {
            r["about"]["job"]: r["result"] for r in done if r["kind"] == "speed" and r["about"]["model"] == entry.name
        }
        speeds.append(Speed(entry, jobs.get("inference"), jobs.get("training")))
    scores, pretrained = [], _pretrained(entries, done)
    for entry in entries:
        first = next((p for p in pretrained if p.entry == entry), None)
        mine = [r for r in done if r["kind"] == "train" and r["about"]["model"] == entry.name]
        paces = _paces(mine)
        for recipe, fraction in dict.fromkeys((r["about"]["recipe"], r["about"]["fraction"]) for r in mine):
            same = [r for r in mine if (r["about"]["recipe"], r["about"]["fraction"]) == (recipe, fraction)]
            before = first if recipe == PRETRAINED else None
            runs = tuple(
                _seed_run(entry, r["about"]["seed"], r["result"], paces[recipe, r["about"]["seed"]], batch_size, before)
                for r in same
            )
            scores.append(_score(entry, recipe, fraction, [r["result"] for r in same], runs))
    scores.sort(key=lambda s: (s.recipe, s.fraction))
    return Summary(speeds, scores, _frozen(done), pretrained, problems)


def _told(about: dict[str, Any]) -> str:
    """What a piece is about, in words."""
    words = {"recipe": "{} recipe", "seed": "seed {}", "fraction": "{:.4g} % of the images"}
    return ", ".join(words.get(k, "{}").format(100 * v if k == "fraction" else v) for k, v in about.items())


def _not_exported(done: Sequence[dict[str, Any]]) -> list[str]:
    """Which trainings have no file of a precision, and why."""
    return [
        f"{_told(r['about'])}: not exported as {precision} ({found['why']})"
        for r in done
        for precision, found in r["result"].get("exported", {}).items()
        if "why" in found
    ]


def _pretrained(entries: Sequence[Entry], done: Sequence[dict[str, Any]]) -> list[Pretrained]:
    found = []
    for entry in entries:
        mine = [r for r in done if r["kind"] == "pretrain" and r["about"]["model"] == entry.name]
        if mine:
            result, seconds = mine[0]["result"], {r["about"]["seed"]: r["result"]["train_seconds"] for r in mine}
            found.append(Pretrained(entry, mine[0]["about"]["method"], result["steps"], result["gmacs"], seconds))
    return found


def _paces(records: Sequence[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Seconds of a step by recipe and seed: of the share whose training was disturbed least.

    A step is the same on every share, and another program on the machine can only make it longer.
    """
    found: dict[tuple[str, int], float] = {}
    for record in records:
        key, seconds = (record["about"]["recipe"], record["about"]["seed"]), record["result"]["seconds_per_step"]
        found[key] = min(seconds, found.get(key, seconds))
    return found


def _seed_run(
    entry: Entry, seed: int, result: dict[str, Any], pace: float, batch_size: int, before: Pretrained | None
) -> SeedRun:
    steps, gmacs, seconds = result["steps"], result["steps"] * entry.gmacs, result["steps"] * pace
    if before is not None:
        steps, gmacs = steps + before.steps, gmacs + before.steps * before.gmacs
        seconds += before.seconds[seed]
    images = steps * batch_size
    return SeedRun(seed, result["accuracy"], seconds, steps, images, 3 * batch_size * gmacs)


def _frozen(done: Sequence[dict[str, Any]]) -> list[Frozen]:
    mine = [r for r in done if r["kind"] == "probe"]
    found = []
    for model, fraction in sorted({(r["about"]["model"], r["about"]["fraction"]) for r in mine}):
        same = [r["result"] for r in mine if (r["about"]["model"], r["about"]["fraction"]) == (model, fraction)]
        spread = Spread.of([r["accuracy"] for r in same])
        found.append(Frozen(model, fraction, same[0]["train_images"], spread))
    return found


def _score(
    entry: Entry, recipe: str, fraction: float, results: list[dict[str, Any]], runs: tuple[SeedRun, ...]
) -> Score:
    score = Score(
        entry,
        recipe,
        fraction,
        train_images=results[0]["train_images"],
        steps=results[0]["steps"],
        accuracy=Spread.of([r["accuracy"] for r in results]),
        ece=Spread.of([r["ece"] for r in results]),
        runs=runs,
    )
    with_them = [r for r in results if r.get("corrupted")]
    if with_them:
        names = with_them[0]["corrupted"]
        score.corrupted = {
            name: [Spread.of(five) for five in zip(*(r["corrupted"][name] for r in with_them), strict=True)]
            for name in names
        }
        score.clean = Spread.of([r["clean_accuracy_of_these"] for r in with_them])
        score.by_corruption = {
            name: Spread.of([statistics.fmean(r["corrupted"][name]) for r in with_them]) for name in names
        }
        means = [statistics.fmean(v for five in r["corrupted"].values() for v in five) for r in with_them]
        score.mean_corrupted = Spread.of(means)
    score.files = _files(results)
    return score


def _files(results: Sequence[dict[str, Any]]) -> dict[str, Files]:
    found: dict[str, Files] = {}
    for precision in dict.fromkeys(p for r in results for p in r.get("exported", {})):
        tried = [(r, r["exported"][precision]) for r in results if precision in r.get("exported", {})]
        both = [(r, one) for r, one in tried if "why" not in one]
        mine = [one for _, one in both]
        if mine:
            found[precision] = Files(
                megabytes=Spread.of([one["bytes"] / MB for one in mine]),
                p50=Spread.of([one["latency_ms"]["p50"] for one in mine]),
                p95=Spread.of([one["latency_ms"]["p95"] for one in mine]),
                images_per_second=Spread.of([one["images_per_second"] for one in mine]),
                accuracy=Spread.of([one["accuracy"] for one in mine]),
                change=Spread.of([one["accuracy"] - r["accuracy"] for r, one in both]),
                same=Spread.of([one["same_answers"] for one in mine]),
            )
    return found
