"""From the logits of a classifier to what it says of an image: the likeliest labels, a set of them, or the unknown.

Legend: B batch, C channels, (H, W) pixels, K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from visionzoo.models.calibration import Calibration

#: (label, probability), highest first.
Prediction = list[tuple[str, float]]


class Scorer(NamedTuple):
    """What one call answers by, taken whole: another thread may change labels or calibration meanwhile."""

    name: str  #: of the classifier, for messages
    labels: tuple[str, ...]
    logits: Callable[[Tensor], Tensor]  #: (B, C, H, W) normalised images -> (B, K)
    multi_label: bool
    calibration: Calibration | None

    def scores(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images -> (B, K) probabilities."""
        logits = self.logits(images)
        if self.multi_label:
            return logits.sigmoid()
        return (logits if self.calibration is None else logits / self.calibration.temperature).softmax(1)

    def one_label_each(self, what: str) -> None:
        """Raises ValueError where each label is scored by itself, which ``what`` is not for."""
        if self.multi_label:
            raise ValueError(f"{what} is for one label an image, and {self.name} scores each label by itself")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a caller wants to hear of each image, see ``ImageLabeller.predict``."""

    top_k: int = 5
    sets: float | None = None
    unknown_rate: float | None = None
    unknown: float | None = None  #: an image whose best label has a lower probability is unknown
    unknown_label: str = "unknown"

    def check(self, scorer: Scorer, how_to_calibrate: str) -> None:
        """Raises ValueError for what makes no sense, and for what the classifier cannot promise."""
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1")
        for name, value in (("sets", self.sets), ("unknown_rate", self.unknown_rate)):
            if value is None:
                continue
            scorer.one_label_each(name)
            if scorer.calibration is None:
                raise ValueError(
                    f"{name}={value:g} needs a calibration, and {scorer.name} has none: {how_to_calibrate}"
                )
            scorer.calibration.check(**{name: value})
        if self.unknown_rate is None:
            return
        if self.unknown is not None:
            raise ValueError(f"give unknown={self.unknown:g} or unknown_rate={self.unknown_rate:g}, not both")
        if self.unknown_label in scorer.labels:
            raise ValueError(f"a label is called {self.unknown_label!r}; set unknown_label to another word")

    def answers(self, scorer: Scorer, scores: Tensor) -> list[Prediction]:
        """(B, K) probabilities -> what to say of each image."""
        calibration, k = scorer.calibration, len(scorer.labels)
        if calibration is None or self.sets is None:
            sizes = [min(self.top_k, k)] * len(scores)
            values, classes = scores.topk(min(self.top_k, k))
        else:  # a set is always the likeliest so many
            sizes = calibration.label_sets(scores, self.sets).sum(1).tolist()
            values, classes = scores.sort(dim=1, descending=True, stable=True)
        rows = values.tolist()
        if calibration is None or self.unknown_rate is None:
            unknown = [self.unknown is not None and row[0] < self.unknown for row in rows]
        else:
            unknown = calibration.unknown(scores, self.unknown_rate).tolist()
        answers = []
        for row, places, size, odd in zip(rows, classes.tolist(), sizes, unknown, strict=True):
            named = [(scorer.labels[place], p) for place, p in zip(places[:size], row[:size], strict=True)]
            answers.append([(self.unknown_label, 1 - row[0]), *named] if odd else named)
        return answers
