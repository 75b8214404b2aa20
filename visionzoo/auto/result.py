"""What was tried, and what came of it: ``fit.json``, and the table that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from visionzoo.files import write_json
from visionzoo.plain import check_types
from visionzoo.weights.preprocessing import read_json

SCHEMA_VERSION = 1
FILE = "fit.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asked for."""

    path: str
    minutes: float
    val_path: str | None = None
    backbone: str | None = None
    weights: str | None = None
    image_size: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line of the table."""

    name: str
    setting: str = ""
    accuracy: float | None = None  #: in [0, 1], on training images that it was not fitted on
    images: int = 0  #: how many these were
    rival: float | None = None  #: accuracy of the linear head on the same images, where these are not all of them
    minutes: float = 0.0
    note: str = ""  #: why it was left out, or ended early


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """All that is known of a run of ``visionzoo fit``."""

    request: Request
    network: str  #: one line
    image_size: int
    data: str  #: fingerprint: which images under which names
    train_images: int
    train_limit: int | None  #: how many of them were used; None for all
    classes: int
    largest_class: float  #: share of the training images that are of the most frequent class
    trials: tuple[Trial, ...] = ()
    kept: str = ""  #: name of the trial whose model is in the run folder
    final_accuracy: float | None = None  #: on the held-out images, which were looked at once
    final_images: int = 0
    final_error: float | None = None  #: expected calibration error there, with the temperature that was found before
    minutes: float = 0.0  #: of all sessions

    def write(self, folder: Path) -> None:
        """Into ``fit.json``."""
        write_json(folder / FILE, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Fitted:
        """Out of ``fit.json``.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: for one that is damaged or of another version.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no {FILE}: it is no run of `visionzoo fit`; a training run goes on by train.py --resume"
            )
        values = dict(read_json(path))
        if values.pop("schema_version", None) != SCHEMA_VERSION:
            raise ValueError(f"{path} is of another version of visionzoo; start again in another folder")
        try:
            request = Request(**values.pop("request"))
            trials = tuple(Trial(**trial) for trial in values.pop("trials"))
            found = cls(**values, request=request, trials=trials)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}); start again in another folder") from None
        check_types({"minutes": request.minutes, "path": request.path}, {"minutes": float, "path": str}, f"{path}: ")
        return found

    def to_text(self) -> str:
        """The table, what was kept, and what it is worth."""
        lines = [*table(self.trials), ""]
        if self.kept:
            lines.append(f"kept: {self.kept}")
        lines += [f"note: {text}" for text in self.doubts()]
        if self.final_accuracy is not None:
            error = "" if self.final_error is None else f"; calibration error {100 * self.final_error:.1f} %"
            lines.append(
                f"{100 * self.final_accuracy:.1f} % of {self.final_images:,} held-out images, looked at once{error}"
            )
        return "\n".join(lines)

    def doubts(self) -> list[str]:
        """What a person should not believe."""
        found = []
        scored = [t for t in self.trials if t.accuracy is not None and t.images]
        if not scored:
            unknown = "" if self.final_images else ", and nobody knows how good this is"
            return [f"so few images that none could be held out: nothing was compared{unknown}"]
        best = max(scored, key=lambda t: t.accuracy or 0.0)
        if not beats(best.accuracy or 0.0, best.images, self.largest_class, of=len(scored)):
            chance, reached = 100 * self.largest_class, 100 * (best.accuracy or 0.0)
            found.append(
                f"nothing beats guessing: the most frequent class alone is right for {chance:.1f} %, the best of these "
                f"({best.name}) for {reached:.1f} % of {best.images:,}. The labels carry no signal that the network "
                "sees, or there are too few images"
            )
        kept = next((t for t in scored if t.name == self.kept), None)
        yardstick = next((t for t in scored if t.name == "k-NN"), None)
        if kept is not None and yardstick is not None and kept.name in ("linear", "text"):
            ahead = (yardstick.accuracy or 0) - (kept.accuracy or 0)
            if ahead > 2 * spread(yardstick.accuracy or 0, yardstick.images):
                found.append(
                    f"k-NN is {100 * ahead:.1f} points better than what was kept; more --minutes train the network"
                )
        return found


def spread(accuracy: float, images: int) -> float:
    """Standard error of an accuracy in [0, 1] over so many images."""
    return math.sqrt(max(accuracy * (1 - accuracy), 1e-9) / max(images, 1))


def beats(accuracy: float, images: int, chance: float, of: int = 1) -> bool:
    """Whether so many right answers, by the best ``of`` several, are more than chance gives in 19 of 20 cases.

    A one-sided binomial test, with Bonferroni's correction.
    """
    from scipy.stats import binomtest

    return bool(binomtest(round(accuracy * images), images, chance, alternative="greater").pvalue < 0.05 / of)


def table(trials: Sequence[Trial]) -> list[str]:
    """Lines with aligned columns."""
    rows = [("tried", "on held-out training images", "minutes")]
    for trial in trials:
        name = f"{trial.name}, {trial.setting}" if trial.setting else trial.name
        if trial.accuracy is None:
            rows.append((name, trial.note, ""))
            continue
        score = f"{100 * trial.accuracy:.1f} % of {trial.images:,}"
        if trial.rival is not None:
            score += f" (linear {100 * trial.rival:.1f} %)"
        rows.append((name, score + (f"; {trial.note}" if trial.note else ""), f"{trial.minutes:.1f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>7}".rstrip() for a, b, c in rows]
