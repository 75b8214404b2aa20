"""The pictures: accuracy against what it costs, against the number of images, and on corrupted images.

Orange is a CNN, blue a ViT, green a hybrid. A full line or a filled marker is the equal recipe, a dashed or open one
the published, a dotted or half-filled one the equal recipe after masked pretraining.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison.corruptions import SEVERITIES
from comparison.models import KINDS, Entry
from comparison.options import PRETRAINED
from comparison.pareto import FrontRow, pareto_front
from comparison.summary import Score, Spread, Summary
from visionzoo.metrics.differences import Ranking
from visionzoo.viz.figure import GREY, new_figure, quiet_axes, save_figure

SHADES = {
    "CNN": ("#d9641e", "#f2a35e", "#9c3d0a", "#f7c79b", "#b8860b"),
    "ViT": ("#2f6db5", "#7fb0e6", "#173f70", "#4fb3bf", "#8f86d6"),
    "hybrid": ("#3d8b4f", "#8cc69a", "#1f5a2d", "#a9a13a", "#6fae5f"),
    "MLP": ("#7a5aa6", "#b39ad6", "#4b2f78", "#c46fae", "#8a8fc4"),
}
MARKERS = "osD^vPX*"
#: recipe -> how its lines are drawn
LINES = {"equal": "-", "published": "--", PRETRAINED: ":"}


def styles(entries: Sequence[Entry]) -> dict[Entry, tuple[str, str]]:
    """(colour, marker) of each model; the colour says its kind."""
    seen = dict.fromkeys(KINDS, 0)
    found: dict[Entry, tuple[str, str]] = {}
    for entry in entries:
        shades = SHADES[entry.kind]
        found[entry] = (shades[seen[entry.kind] % len(shades)], MARKERS[len(found) % len(MARKERS)])
        seen[entry.kind] += 1
    return found


def filling(recipe: str, colour: str) -> dict[str, Any]:
    """What a marker is filled with, in matplotlib's words."""
    if recipe == PRETRAINED:
        return {"fillstyle": "left", "markerfacecolor": colour, "markerfacecoloralt": "white"}
    return {"markerfacecolor": colour if recipe == "equal" else "white"}


def draw_all(
    summary: Summary,
    entries: Sequence[Entry],
    front: Sequence[FrontRow],
    ranked: Mapping[str, tuple[list[Entry], Ranking]],
    out: Path,
) -> dict[str, Path]:
    """Every picture there are results for, by its title."""
    found = {}
    if front:
        found["Accuracy against cost"] = accuracy_cost(front, entries, out / "accuracy_cost.png")
    for title, name, draw in (
        ("Data efficiency", "data_efficiency.png", data_efficiency),
        ("Robustness", "robustness.png", robustness),
    ):
        path = draw(summary, entries, out / name)
        if path is not None:
            found[title] = path
    for recipe, (here, ranking) in ranked.items():
        title = f"Critical difference, {recipe} recipe"
        found[title] = critical_difference(here, ranking, out / f"critical_difference_{recipe}.png")
    return found


def _save(figure: Any, out: Path) -> Path:
    """As PNG for the page and for Markdown, and as SVG for papers."""
    save_figure(figure, out.with_suffix(".svg"))
    return save_figure(figure, out)


def critical_difference(entries: Sequence[Entry], ranking: Ranking, out: Path) -> Path:
    """Mean ranks on an axis, best on the left; a bar joins those that Nemenyi's test does not tell apart."""
    figure = new_figure(9.0, 1.6 + 0.3 * len(entries))
    axes = figure.subplots()
    order = sorted(range(len(entries)), key=lambda i: ranking.ranks[i])
    look = styles(entries)
    for row, i in enumerate(reversed(order)):  # the longest stem on the left, so that no name crosses another's
        x, y = ranking.ranks[i], -1.0 - 0.5 * row
        colour = look[entries[i]][0]
        axes.plot([x, x], [0, y], color=colour, linewidth=1.4)
        axes.plot(x, 0, "o", color=colour, markersize=7)
        axes.annotate(f" {entries[i].label}  {x:.2f}", (x, y), color=colour, va="center", fontsize=10)
    for row, group in enumerate(ranking.groups()):
        places = [ranking.ranks[i] for i in group]
        axes.plot([min(places), max(places)], [-0.18 - 0.14 * row] * 2, color="#444", linewidth=4, alpha=0.75)
    axes.plot([1, 1 + ranking.critical], [0.6, 0.6], color=GREY, linewidth=2)
    axes.annotate(f"critical difference {ranking.critical:.2f}", (1, 0.72), color=GREY, fontsize=9)
    axes.set_xlim(0.8, max(len(entries), 1 + ranking.critical) + 1.2)
    axes.set_ylim(-1.4 - 0.5 * len(entries), 1.2)
    axes.set_yticks([])
    axes.set_xticks(range(1, len(entries) + 1))
    axes.set_xlabel(f"mean rank over {ranking.blocks} shares and seeds; Friedman's p = {ranking.p:.2g}", fontsize=9)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    return _save(figure, out)


#: A cost with its bar: low end, value, high end.
Bar = tuple[float, float, float]


def accuracy_cost(front: Sequence[FrontRow], entries: Sequence[Entry], out: Path) -> Path:
    """Accuracy against the latency of one image, and against minutes of training; the Pareto front is marked.

    Bars are one standard deviation over seeds, and the quartiles of the timed images for latency.
    """
    figure = new_figure(13.0, 5.2)
    left, right = figure.subplots(1, 2, sharey=True)
    _against(left, [(r.score, r.latency) for r in front], entries, "latency of one image, median, ms")
    _against(right, [(r.score, _minutes(r.score)) for r in front], entries, "training, minutes")
    left.set_ylabel("top-1 accuracy, %")
    _legend(figure, entries, recipes=sorted({r.score.recipe for r in front}), front=True)
    return _save(figure, out)


def _minutes(score: Score) -> Bar:
    deviation = Spread.of([run.seconds / 60 for run in score.runs]).deviation or 0.0
    return max(score.minutes - deviation, score.minutes / 2), score.minutes, score.minutes + deviation


def _against(axes: Any, points: Sequence[tuple[Score, Bar | None]], entries: Sequence[Entry], label: str) -> None:
    look = styles(entries)
    quiet_axes(axes)
    found = [(score, bar) for score, bar in points if bar is not None]
    front = pareto_front([(x, s.accuracy.mean) for s, (_, x, _) in found])
    if front:
        best = [(found[i][1][1], 100 * found[i][0].accuracy.mean) for i in front]
        axes.plot(*zip(*best, strict=True), color=GREY, linewidth=1.4, drawstyle="steps-post", zorder=1)
    for i, (score, (low, x, high)) in enumerate(found):
        colour, marker = look[score.entry]
        y, error = 100 * score.accuracy.mean, 100 * (score.accuracy.deviation or 0)
        if i in front:
            axes.plot(x, y, "o", markersize=19, markerfacecolor="none", markeredgecolor=GREY, markeredgewidth=1.1)
        axes.errorbar(
            x, y, xerr=[[x - low], [high - x]], yerr=error or None, color=colour, marker=marker, markersize=9,
            **filling(score.recipe, colour), markeredgewidth=1.8, capsize=3, linewidth=1.2, zorder=3,
        )  # fmt: skip
    if found:
        _log_x(axes, [x for _, bar in found for x in bar])
    axes.set_xlabel(label)
    axes.margins(x=0.08, y=0.12)


def _log_x(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, and some room when all values are near."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = min(values), max(values)
    if high < 4 * low:
        middle = (low * high) ** 0.5
        axes.set_xlim(min(middle / 2, low * 0.85), max(middle * 2, high * 1.18))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, entries: Sequence[Entry], *, recipes: Sequence[str], front: bool = False) -> None:
    """One legend on the right of the figure: models by kind, then what filled and open mean."""
    from matplotlib.lines import Line2D

    look, handles = styles(entries), []
    for kind in KINDS:
        for entry in (e for e in entries if e.kind == kind):
            colour, marker = look[entry]
            text = f"{entry.label} ({kind})"
            handles.append(Line2D([], [], color=colour, marker=marker, markersize=8, linewidth=1.6, label=text))
    if len(recipes) > 1:
        for recipe in recipes:
            text = "equal recipe, pretrained" if recipe == PRETRAINED else f"{recipe} recipe"
            look_of = {"color": "#444", "linestyle": LINES[recipe], **filling(recipe, "#444")}
            handles.append(Line2D([], [], marker="o", markersize=8, label=text, **look_of))
    if front:
        handles.append(
            Line2D([], [], color=GREY, marker="o", markersize=14, markerfacecolor="none", label="Pareto front")
        )
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=10, labelspacing=0.7)


def data_efficiency(summary: Summary, entries: Sequence[Entry], out: Path) -> Path | None:
    """Accuracy against the number of training images, for the recipes that were run on several shares."""
    curves = []
    for recipe in LINES:
        for entry in entries:
            points = [s for s in summary.scores if s.entry == entry and s.recipe == recipe]
            if len(points) > 1:
                curves.append((entry, recipe, points))
    if not curves:
        return None
    figure = new_figure(8.6, 4.6)
    axes = figure.subplots()
    quiet_axes(axes)
    look = styles(entries)
    for entry, recipe, points in curves:
        colour, marker = look[entry]
        x = [p.train_images for p in points]
        y = [100 * p.accuracy.mean for p in points]
        spread = [100 * (p.accuracy.deviation or 0) for p in points]
        axes.plot(
            x, y, LINES[recipe], color=colour, marker=marker, markersize=7, linewidth=1.8, **filling(recipe, colour)
        )
        low, high = ([a + sign * b for a, b in zip(y, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    counts = sorted({p.train_images for _, _, points in curves for p in points})
    axes.set_xticks(counts, [f"{c:,}" for c in counts])
    axes.minorticks_off()
    axes.set_xlabel("training images")
    axes.set_ylabel("top-1 accuracy, %")
    _legend(figure, entries, recipes=sorted({r for _, r, _ in curves}))
    return _save(figure, out)


def robustness(summary: Summary, entries: Sequence[Entry], out: Path) -> Path | None:
    """Bars: accuracy on each corruption, all severities together; lines: accuracy as the severity rises."""
    recipe = "equal" if any(s.corrupted for s in summary.scores if s.recipe == "equal") else "published"
    shown = [s for e in entries if (s := summary.score(e, recipe)) is not None and s.corrupted]
    if not shown:
        return None
    look, names = styles(entries), list(shown[0].corrupted)
    bars = 0.9 + 0.75 * (len(names) + 1)
    figure = new_figure(max(11.0, bars + 6.6), 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(max(1.8, bars / 3.2), 1.6), sharey=True)
    width = 0.8 / len(shown)
    for i, score in enumerate(shown):
        spreads = [_clean(score), *score.by_corruption.values()]
        x = [g + (i - (len(shown) - 1) / 2) * width for g in range(len(spreads))]
        left.bar(
            x, [100 * s.mean for s in spreads], width * 0.92, color=look[score.entry][0],
            yerr=[100 * (s.deviation or 0) for s in spreads], error_kw={"linewidth": 0.8, "ecolor": "#555"},
        )  # fmt: skip
        colour, marker = look[score.entry]
        lines = [
            _clean(score).mean,
            *(statistics.fmean(f[s - 1].mean for f in score.corrupted.values()) for s in SEVERITIES),
        ]
        right.plot([0, *SEVERITIES], [100 * v for v in lines], color=colour, marker=marker, markersize=7, linewidth=1.8)
    for axes in (left, right):
        quiet_axes(axes)
        axes.set_ylim(bottom=0)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[call-arg]
    left.grid(visible=False, axis="x")
    left.axvline(0.5, color="#d5d8dc", linewidth=1)
    left.set_xticks(range(1 + len(names)), ["none", *(n.replace("_", "\n") for n in names)], fontsize=9)
    left.set_ylabel("top-1 accuracy, %")
    left.set_title(f"{recipe} recipe, by corruption: mean of the severities", fontsize=10, loc="left")
    right.set_title("by severity: mean of the corruptions", fontsize=10, loc="left")
    right.set_xlabel("severity (0: none)")
    _legend(figure, [s.entry for s in shown], recipes=[recipe])
    return _save(figure, out)


def _clean(score: Score) -> Spread:
    assert score.clean is not None
    return score.clean
