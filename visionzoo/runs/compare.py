"""Two runs, image by image: what each answered for the held-out images that both have.

Legend: N images that both answered.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionzoo.metrics.differences import Difference, error_agreement, holm, mcnemar, paired_difference
from visionzoo.runs.answers import HeldOutAnswers, read_answers
from visionzoo.runs.folder import RunFolder

#: Below this p a difference is called one.
ALPHA = 0.05


@dataclass(frozen=True)
class ClassDifference:
    """One class."""

    name: str
    images: int
    right: tuple[int, int]  #: by the first run and by the second
    p: float  #: McNemar's, after Holm among all classes


@dataclass(frozen=True)
class RunComparison:
    """The answers of two runs for the same images."""

    runs: tuple[RunFolder, RunFolder]
    found: tuple[HeldOutAnswers, HeldOutAnswers]
    rows: np.ndarray  #: (2, N) rows of the same image in each
    right: np.ndarray  #: (2, N) bool
    difference: Difference  #: of accuracy, the first run less the second
    classes: tuple[ClassDifference, ...]  #: the surest difference first
    same_answer: float  #: share of images that both gave the same class, right or wrong
    kappa: float  #: Cohen's, of being right: 0 is chance, 1 is the same mistakes

    @property
    def images(self) -> int:
        """N."""
        return self.right.shape[1]

    def accuracy(self, run: int) -> float:
        """Of one run on these images."""
        return float(self.right[run].mean())

    def only(self, run: int) -> np.ndarray:
        """(M,) places among the N that only this run has right, those first that the other is surest of."""
        places = np.flatnonzero(self.right[run] & ~self.right[1 - run])
        probabilities = self.found[1 - run].rows["probabilities"]
        return places[np.argsort([-probabilities[self.rows[1 - run, i]][0] for i in places], kind="stable")]

    def answer(self, run: int, place: int) -> tuple[str, float]:
        """The class that a run answered for one of the N, and its probability."""
        found, row = self.found[run], self.rows[run, place]
        return found.about.classes[found.rows["answers"][row][0]], found.rows["probabilities"][row][0]

    def label(self, place: int) -> str:
        """The class of one of the N."""
        return self.found[0].about.classes[self.found[0].rows["label"][self.rows[0, place]]]

    def verdict(self) -> str:
        """What may be said of the two networks, and what may not."""
        seen = self.difference
        if seen.p < ALPHA:
            return f"{'the first' if seen.value > 0 else 'the second'} is better on images like these"
        if seen.resolvable > 1:
            return f"no difference seen; {self.images:,} images are too few to show any"
        points = 100 * seen.resolvable
        return f"no difference seen; {self.images:,} images would show {points:.1f} points"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "runs": [str(run.path) for run in self.runs],
            "images": self.images,
            "images_of_each": [len(found.rows["label"]) for found in self.found],
            "accuracy": [self.accuracy(0), self.accuracy(1)],
            "difference": self.difference.value,
            "interval": [self.difference.low, self.difference.high],
            "p": self.difference.p,
            "resolvable": self.difference.resolvable,
            "verdict": self.verdict(),
            "both_right": int(self.right.all(0).sum()),
            "only_first": len(self.only(0)),
            "only_second": len(self.only(1)),
            "neither": int((~self.right).all(0).sum()),
            "same_answer": self.same_answer,
            "kappa": None if np.isnan(self.kappa) else self.kappa,
            "classes": [{"class": c.name, "images": c.images, "right": list(c.right), "p": c.p} for c in self.classes],
            "disagree": [
                {"sample": self.found[0].rows["sample"][self.rows[0, i]], "label": self.label(i)}
                | {name: self.answer(run, i)[0] for run, name in enumerate(("first", "second"))}
                for i in np.flatnonzero(self.right[0] != self.right[1]).tolist()
            ],
        }


def compare_runs(one: str | Path, other: str | Path) -> RunComparison:
    """Compare what two runs answered for the held-out images that both have.

    An image is known by its name and its place in the source; classes are known by their names.

    Raises:
        FileNotFoundError: for what is no run folder, or has no answers.
        ValueError: if they have no image in common, or disagree about a label.
    """
    runs = _open(one), _open(other)
    found = _answers(runs[0]), _answers(runs[1])
    places = [_places(f) for f in found]
    common = [key for key in places[0] if key in places[1]]
    if not common:
        examples = [f.rows["sample"][0] if f.rows["sample"] else "nothing" for f in found]
        raise ValueError(
            f"{runs[0].path} and {runs[1].path} answered no image in common: one has {examples[0]!r}, the other "
            f"{examples[1]!r}; evaluate both on the same data (train.py classify validate)"
        )
    rows = np.array([[places[run][key] for key in common] for run in range(2)])
    labels = [[f.about.classes[f.rows["label"][i]] for i in rows[run]] for run, f in enumerate(found)]
    if differ := [i for i, pair in enumerate(zip(*labels, strict=True)) if pair[0] != pair[1]]:
        sample = found[0].rows["sample"][rows[0, differ[0]]]
        raise ValueError(
            f"the runs disagree about the labels of {len(differ):,} of {len(common):,} images, such as {sample!r}: "
            f"{labels[0][differ[0]]!r} and {labels[1][differ[0]]!r}; they were made with other data"
        )
    answered = [[f.about.classes[f.rows["answers"][i][0]] for i in rows[run]] for run, f in enumerate(found)]
    right = np.array([[a == t for a, t in zip(answered[run], labels[run], strict=True)] for run in range(2)])
    return RunComparison(
        runs,
        found,
        rows,
        right,
        paired_difference(right[0], right[1]),
        _classes(np.array(labels[0]), right),
        float(np.mean([a == b for a, b in zip(*answered, strict=True)])),
        error_agreement(right[0], right[1]),
    )


def _open(path: str | Path) -> RunFolder:
    """A run, or the folder of an evaluation, which has answers and no model."""
    return run if (run := RunFolder(path)).answers.is_file() else RunFolder.open(path)


def _answers(run: RunFolder) -> HeldOutAnswers:
    if not run.answers.is_file():
        raise FileNotFoundError(
            f"{run.path} has no {run.answers.name}; a run of classify writes it when it ends, and with `validate`"
        )
    return read_answers(run.answers)


def _places(found: HeldOutAnswers) -> dict[tuple[str, int], int]:
    keys = list(zip(found.rows["sample"], found.rows["position"], strict=True))
    twice = {key for key, count in Counter(keys).items() if count > 1}
    return {key: row for row, key in enumerate(keys) if key not in twice}


def _classes(labels: np.ndarray, right: np.ndarray) -> tuple[ClassDifference, ...]:
    names = sorted(set(labels.tolist()))
    inside = [labels == name for name in names]
    adjusted = holm([mcnemar(right[0, mask], right[1, mask]) for mask in inside])
    found = [
        ClassDifference(name, int(mask.sum()), (int(right[0, mask].sum()), int(right[1, mask].sum())), p)
        for name, mask, p in zip(names, inside, adjusted, strict=True)
    ]
    return tuple(sorted(found, key=lambda c: (c.p, -abs(c.right[0] - c.right[1]) / c.images)))
