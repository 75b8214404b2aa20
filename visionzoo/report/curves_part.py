"""The curves of a run, out of ``metrics.csv``."""

from __future__ import annotations

import csv
import re
from typing import Any

from visionzoo.report.charts import Chart, ChartLine, number
from visionzoo.report.components import Paragraph
from visionzoo.runs.folder import RunFolder
from visionzoo.viz.curves import Panel, Series, panels, read_metrics, smooth, without_spike

#: Colour, and whether dashed, of the lines of each stage, one after the other.
TONES = {
    "train": (("one", False), ("one", True)),
    "val": (("two", False), ("two", True), ("four", False), ("four", True), ("three", False), ("three", True)),
    "test": (("three", False), ("three", True)),
}
#: Curves of more panels than this are no overview; the rest are in the file.
PANELS = 8
#: What is above it cannot be told apart in numbers of 64 bits.
LARGEST = 1e300
#: Lines of one panel, at most.
LINES = 8


def curve_parts(folder: RunFolder) -> list[Any]:
    """A chart for each panel; what is missing where there is none."""
    if not folder.metrics_csv.is_file():
        return [Paragraph("There are no curves: the folder has no metrics.csv.", "note")]
    try:
        found = panels(read_metrics(folder.metrics_csv))
    except (ValueError, OSError, csv.Error) as error:
        return [Paragraph(f"The curves cannot be drawn: {error}", "warning")]
    if not found:
        return [Paragraph("There are no curves yet: metrics.csv holds no values.", "note")]
    charts: list[Any] = [_chart(i, panel) for i, panel in enumerate(found[:PANELS])]
    if len(found) > PANELS:
        charts.append(Paragraph(f"{len(found) - PANELS} more values are in metrics.csv.", "note"))
    return charts


def _chart(place: int, panel: Panel) -> Chart:
    lines: list[ChartLine] = []
    seen: dict[str, int] = {}
    for one in sorted(panel.series, key=lambda s: (list(TONES).index(s.stage), _natural(s.name)))[:LINES]:
        before = seen.setdefault(one.stage, 0)
        seen[one.stage] += 1
        tone, dashed = TONES[one.stage][before % len(TONES[one.stage])]
        smoothed = smooth(one.values) if one.stage == "train" and panel.title != "Learning rate" else one.values
        name = one.name.removesuffix("_epoch")
        if smoothed is not one.values:  # a training value is of one batch
            lines.append(ChartLine(f"{name}, each step", _points(one, one.values), "faint"))
        tone = "three" if panel.title == "Learning rate" else tone
        lines.append(ChartLine(name, _points(one, smoothed), tone, dashed, dots=len(one.steps) <= 40))
    named = [line for line in lines if line.tone != "faint"]
    bounds = without_spike(panel) if panel.title == "Loss" else None
    note = _note(panel)
    if bounds is not None:
        most = max(float(one.values.max()) for one in panel.series)
        note = "; ".join(filter(None, [note, f"highest value {number(most)} not shown"]))
    faint = [line for line in lines if line.tone == "faint"]
    return Chart(f"curve-{place}", panel.title, [*faint, *named], note=note, bounds=bounds)


def _note(panel: Panel) -> str:
    """Where the held-out value was best."""
    if panel.title not in ("Loss", "Score", "Accuracy"):
        return ""
    parts = []
    for one in panel.series:
        if one.stage == "val":
            best = int(one.values.argmin() if panel.title == "Loss" else one.values.argmax())
            parts.append(f"best {one.name} {number(float(one.values[best]))} at step {one.steps[best]:,.0f}")
    return ("; ".join(parts[:3])).capitalize()


def _natural(name: str) -> list[tuple[int, str]]:
    """For an order in which R@5 comes before R@10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _points(series: Series, values: Any) -> list[tuple[float, float]]:
    points = zip(series.steps.tolist(), values.tolist(), strict=True)
    return [(x, y) for x, y in points if abs(y) < LARGEST]
