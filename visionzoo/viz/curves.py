"""Learning curves from the CSV that Lightning's ``CSVLogger`` writes."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visionzoo.viz.figure import BLUE, GREEN, GREY, ORANGE, new_figure, plain, quiet_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
_RATE = re.compile(r"(^|[/_-])(lr|learning_rate)([/_-]|$)")
_LOSS = re.compile(r"(^|[/_-])loss([/_-]|$)")
_SCORE = re.compile(r"(^|[/_-])(acc|accuracy|top_?[0-9]+|f1|recall|precision|m?ap|m?iou|auroc)([/_@-]|$)")
_ACCURACY = re.compile(r"(^|[/_-])(acc|accuracy|top_?[0-9]+)([/_-]|$)")
_AXIS = ("epoch", "step")
#: Retrieval has a panel for each direction: six curves and their mean in one cannot be told apart.
_DIRECTIONS = {"image_to_text": "Recall, image to text", "text_to_image": "Recall, text to image"}
#: A training value is of one batch. Curves of so many points are smoothed.
_NOISY_FROM = 8


@dataclass
class Series:
    """One logged value over training steps."""

    name: str
    steps: np.ndarray  #: (n,) increasing
    values: np.ndarray  #: (n,) finite

    @property
    def stage(self) -> str:
        """``train``, ``val`` or ``test``; ``train`` for a name that says nothing."""
        return next((s for s in ("val", "test") if re.search(rf"(^|[/_-]){s}([/_-]|$)", self.name)), "train")


@dataclass
class Panel:
    """One set of axes."""

    title: str
    series: list[Series] = field(default_factory=list)


def read_metrics(metrics_csv: str | Path) -> list[Series]:
    """The columns of a metrics file that hold numbers.

    Lightning writes one row for each logging call, with empty cells for whatever was not logged then, and after a
    resume logs some steps again: of two values for one step, the later row counts. Values that are not finite are left
    out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no ``step`` column.
    """
    with Path(metrics_csv).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns: dict[str, dict[float, float]] = {}
        for row in reader:
            if (step := _number(row.get("step"))) is None:
                continue
            for name, cell in row.items():
                if name not in _AXIS and (value := _number(cell)) is not None:
                    columns.setdefault(name, {})[step] = value
        if reader.fieldnames and "step" not in reader.fieldnames:
            raise ValueError(f"{metrics_csv} has no column 'step', only {', '.join(reader.fieldnames)}")
    return [Series(n, np.array(sorted(v)), np.array([v[s] for s in sorted(v)])) for n, v in columns.items()]


def learning_curves(metrics_csv: str | Path, out: str | Path, title: str = "") -> Path | None:
    """Draw loss, scores, learning rate and whatever else was logged, over steps.

    Returns:
        ``out``; or None, and nothing is written, when the file holds no value yet.

    Raises:
        FileNotFoundError: if there is no metrics file.
    """
    found = panels(read_metrics(metrics_csv))
    if not found:
        return None
    columns = min(len(found), 3)
    rows = math.ceil(len(found) / columns)
    legend = 0.2 * max(len(p.series) for p in found if p.title != "Learning rate" or len(found) == 1)
    figure = new_figure(5.0 * columns, (3.4 + legend) * rows + (0.4 if title else 0))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, ax in zip(found, axes, strict=False):
        _draw(panel, ax)
    for ax in axes[len(found) :]:
        ax.set_axis_off()
    if title:
        figure.suptitle(plain(title), fontsize=13)
    return save_figure(figure, out)


def _number(cell: str | None) -> float | None:
    if not cell or not isinstance(cell, str):
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def panels(series: list[Series]) -> list[Panel]:
    """Loss first, then scores, learning rate last; a direction of retrieval and any other value have their own."""
    loss, score, rate = Panel("Loss"), Panel("Score"), Panel("Learning rate")
    others: dict[str, Panel] = {}
    names = {s.name for s in series}
    for one in series:
        if one.name.endswith("_step") and one.name.removesuffix("_step") + "_epoch" in names:
            continue  # Lightning logs both; the epoch's mean is the readable one
        if _RATE.search(one.name):
            rate.series.append(one)
        elif _LOSS.search(one.name):
            loss.series.append(one)
        elif direction := next((d for d in _DIRECTIONS if d in one.name), None):
            others.setdefault(direction, Panel(_DIRECTIONS[direction])).series.append(one)
        elif _SCORE.search(one.name):
            score.series.append(one)
        else:
            key = re.sub(r"^(train|val|test|watch)[/_-]", "", one.name)
            others.setdefault(key, Panel(key)).series.append(one)
    if score.series and all(_ACCURACY.search(s.name) for s in score.series):
        score.title = "Accuracy"
    return [p for p in (loss, score, *others.values(), rate) if p.series]


def _draw(panel: Panel, axes: Axes) -> None:
    quiet_axes(axes)
    axes.set_title(plain(panel.title), fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("step")
    from matplotlib.ticker import MaxNLocator

    if panel.title == "Learning rate":
        _draw_rates(panel, axes)
    else:
        _draw_values(panel, axes)
    steps = np.concatenate([one.steps for one in panel.series])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if steps.min() == steps.max():
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    else:
        axes.margins(x=0.05 if len(steps) < 40 else 0.02)


def _draw_rates(panel: Panel, axes: Axes) -> None:
    """Layer-wise decay logs dozens of groups: they share a colour, and the legend counts them."""
    for one in panel.series:
        marker = "o" if len(one.steps) == 1 else ""  # a line of one point is nothing
        alpha = 1 if len(panel.series) == 1 else 0.5
        axes.plot(one.steps, one.values, color=GREEN, linewidth=1.2, alpha=alpha, marker=marker)
    if len(panel.series) > 1:
        axes.plot([], [], color=GREEN, label=f"{len(panel.series)} parameter groups")
        axes.legend(frameon=False, fontsize=9)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own would put 1e-3 over the title


def _draw_values(panel: Panel, axes: Axes) -> None:
    styles = ("-", "--", ":", "-.")
    seen: dict[str, int] = {}
    for one in sorted(panel.series, key=lambda s: list(_COLOURS).index(s.stage)):
        style = styles[seen.setdefault(one.stage, 0) % len(styles)]
        seen[one.stage] += 1
        colour = _COLOURS[one.stage]
        label = plain(one.name.removesuffix("_epoch"))
        marker = "o" if len(one.steps) <= 40 else ""
        shown = smooth(one.values) if one.stage == "train" else one.values
        if shown is not one.values:
            axes.plot(one.steps, one.values, color=colour, alpha=0.25, linewidth=0.8)
            marker = ""
        if one.stage == "val":
            best = int(np.argmin(one.values) if panel.title == "Loss" else np.argmax(one.values))
            if panel.title in ("Loss", "Score", "Accuracy", *_DIRECTIONS.values()):
                label += f" (best {one.values[best]:.4g} at step {one.steps[best]:g})"
        if len(one.steps) == 1:  # one epoch: what is a point and no curve is large, has a shape and says its value
            shape, label = "osD^"[(seen[one.stage] - 1) % 4], f"{plain(one.name)} {one.values[0]:.4g}"
            axes.plot(one.steps, one.values, color=colour, label=label, marker=shape, markersize=8, linestyle="")
            continue
        axes.plot(one.steps, shown, style, color=colour, label=label, marker=marker, markersize=3, linewidth=1.6)
    # below the axes: a place inside that no curve crosses is not always there
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    if panel.title == "Loss":
        _cut_spike(panel, axes)


def smooth(values: np.ndarray) -> np.ndarray:
    """(n,) values -> a centred running mean over a fifteenth of them, three at least; a few points as they are."""
    if len(values) < _NOISY_FROM:
        return values
    width = max(3, len(values) // 15) | 1
    counts = np.convolve(np.ones(len(values)), np.ones(width), mode="same")
    return np.convolve(values, np.ones(width), mode="same") / counts


def without_spike(panel: Panel) -> tuple[float, float] | None:
    """Where an axis of losses begins and ends, if a few huge ones would press the rest flat: above 98 % of them."""
    values = np.concatenate([s.values for s in panel.series])
    low, high, most = float(values.min()), float(np.quantile(values, 0.98)), float(values.max())
    if len(values) >= 50 and most - low > 4 * (high - low) > 0:
        return low - 0.05 * (high - low), high + 0.15 * (high - low)
    return None


def _cut_spike(panel: Panel, axes: Axes) -> None:
    if (bounds := without_spike(panel)) is not None:
        axes.set_ylim(*bounds)
        axes.text(
            0.99, 0.99, f"highest value {max(s.values.max() for s in panel.series):.3g} not shown",
            transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color=GREY,
        )  # fmt: skip
