"""What held-out images say of a classifier's probabilities, kept beside its weights.

Legend: N images, K classes.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from visionzoo.metrics.calibration import (
    COLDEST,
    FREE_RANKS,
    HOTTEST,
    PENALTY,
    adaptive_scores,
    calibration_error,
    conformal_thresholds,
    fit_temperature,
    label_scores,
    unfamiliarity,
)
from visionzoo.plain import check_types, shown

#: Levels whose thresholds are kept; one between two of them is answered by the next, which holds the truth more often.
LEVELS = (*(round(0.01 * i, 2) for i in range(50, 100)), 0.995, 0.999)
#: Fewer images say next to nothing of a rate.
LEAST = 20
#: How to come by a calibration.
HOW = "visionzoo calibrate RUN --data.path PATH does it on labelled images that the model was not trained on"
_MOST = 10_000  #: levels that are read from a file
_SLIP = 1e-9  #: 1 - 0.1 is not quite 0.9


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperature and thresholds of a classifier, fitted on held-out images with one label each.

    They hold for images like those, drawn as those were, and not for other kinds of images.
    """

    images: int  #: N that it was fitted on
    temperature: float  #: logits are divided by it before the softmax
    #: expected calibration error of these images: of the model as it is, and see :func:`cross_fitted_error`
    error: tuple[float, float]
    levels: tuple[float, ...]  #: ascending, in (0, 1); up to what so many images can tell, N / (N + 1)
    sets: tuple[float, ...]  #: for each level the highest adaptive score of a label in the set
    known: tuple[float, ...]  #: for each level the highest of 1 - the best probability at which an image is not unknown
    penalty: float  #: of :func:`visionzoo.metrics.calibration.adaptive_scores`
    free_ranks: int

    def __post_init__(self) -> None:
        check_types(vars(self), typing.get_type_hints(type(self)), "calibration.")
        if not 1 <= self.images < 2**53 or not COLDEST / 2 <= self.temperature <= HOTTEST * 2:
            raise ValueError(
                f"calibration.images={shown(self.images)} must be at least 1, and temperature={self.temperature:g} "
                f"from {COLDEST:g} to {HOTTEST:g}"
            )
        tables = (self.levels, self.sets, self.known)
        if not 1 <= len(self.levels) <= _MOST or len({len(table) for table in tables}) > 1:
            raise ValueError(
                f"calibration.levels, sets and known must be of one length, from 1 to {_MOST}, not "
                f"{len(self.levels)}, {len(self.sets)} and {len(self.known)}"
            )
        rising = all(a <= b for table in tables for a, b in pairwise(table))
        if not rising or min(min(table) for table in tables) < 0 or not 0 < self.levels[0] <= self.levels[-1] < 1:
            raise ValueError("calibration.levels, sets and known must rise from 0 or more, levels staying below 1")
        if not 0 <= self.penalty <= 1 or not 0 <= self.free_ranks < 2**31:
            raise ValueError(
                f"calibration.penalty={self.penalty:g} must be in 0..1, free_ranks={shown(self.free_ranks)} at least 0"
            )

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor) -> Calibration:
        """Fit temperature and thresholds; nothing is random.

        Args:
            logits: (N, K), of images that the model was not trained on.
            labels: (N,) int64 in [0, K).

        Raises:
            ValueError: for fewer than ``LEAST`` images, or logits that are not finite.
        """
        if len(logits) < LEAST:
            raise ValueError(f"a calibration needs at least {LEAST} labelled images, not {len(logits)}")
        temperature = _temperature(logits, labels)
        probabilities = (logits.double() / temperature).softmax(1)
        levels = [level for level in LEVELS if level <= len(logits) / (len(logits) + 1) + _SLIP]
        scores = label_scores(probabilities, labels, penalty=PENALTY, free_ranks=FREE_RANKS)
        return cls(
            images=len(logits),
            temperature=temperature,
            error=(calibration_error(logits.double().softmax(1), labels), cross_fitted_error(logits, labels)),
            levels=tuple(levels),
            sets=tuple(conformal_thresholds(scores, levels).tolist()),
            known=tuple(conformal_thresholds(unfamiliarity(probabilities), levels).tolist()),
            penalty=PENALTY,
            free_ranks=FREE_RANKS,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Out of JSON, checked.

        Raises:
            ValueError: for a key that is missing or unknown, or a value that cannot be.
        """
        known = typing.get_type_hints(cls)
        if odd := sorted(set(values) ^ set(known)):
            raise ValueError(f"calibration has unknown keys or lacks some: {', '.join(map(repr, odd))[:200]}")
        check_types(values, known, "calibration.")
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fixed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` reads them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def check(self, sets: float | None = None, unknown_rate: float | None = None) -> None:
        """Raises ValueError for what :meth:`label_sets` or :meth:`unknown` would refuse."""
        for name, asked in (("sets", sets), ("unknown_rate", unknown_rate)):
            if asked is not None:
                self._place(name, asked)

    def label_sets(self, probabilities: Tensor, level: float) -> Tensor:
        """(N, K) calibrated probabilities -> (N, K) bool, labels that hold the truth at ``level``; at least one each.

        Raises:
            ValueError: for a level outside (0, 1), or above what so many images can tell.
        """
        threshold = self.sets[self._place("sets", level)]
        return adaptive_scores(probabilities, 1.0, self.penalty, self.free_ranks) <= threshold

    def unknown(self, probabilities: Tensor, rate: float) -> Tensor:
        """(N, K) calibrated probabilities -> (N,) bool: what is as unsure as ``rate`` of known images at most are.

        Raises:
            ValueError: for a rate outside (0, 1), or below what so many images can tell.
        """
        return unfamiliarity(probabilities) > self.known[self._place("unknown_rate", rate)]

    def _place(self, name: str, asked: float) -> int:
        if not 0 < asked < 1:
            raise ValueError(f"{name}={asked:g} must be above 0 and below 1")
        level = asked if name == "sets" else 1 - asked
        for place, known in enumerate(self.levels):
            if known >= level - _SLIP:
                return place
        last = self.levels[-1]
        most = f"at most {last:g}" if name == "sets" else f"at least {1 - last:.3g}"
        needed = math.ceil(level / (1 - level) - _SLIP)
        more = f", or calibrate on {needed:,} or more" if level <= LEVELS[-1] else ""
        raise ValueError(f"{name}={asked:g} is more than {self.images:,} calibration images can tell: ask {most}{more}")


def cross_fitted(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities where each half of the images has the temperature of the other half.

    A temperature looks better on the images that it was fitted on than it is; so no image is judged by one that has
    seen it. The halves are every second image.

    Args:
        logits: (N, K), N at least 2.
        labels: (N,) int64.

    Returns:
        (N, K) float64.
    """
    probabilities = torch.empty_like(logits, dtype=torch.float64)
    halves = slice(0, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        probabilities[half] = (logits[half].double() / _temperature(logits[other], labels[other])).softmax(1)
    return probabilities


def cross_fitted_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error of :func:`cross_fitted` probabilities, of (N, K) logits and (N,) labels."""
    return calibration_error(cross_fitted(logits, labels), labels)


def _temperature(logits: Tensor, labels: Tensor) -> float:
    return fit_temperature(logits, labels, smoothing=1 / (len(labels) + 1))
