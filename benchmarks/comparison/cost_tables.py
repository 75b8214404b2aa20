"""The tables of what networks cost: time, memory, energy, and what an accuracy is had for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comparison.models import Entry
from comparison.options import Plan
from comparison.pareto import DRAWS, FrontRow
from comparison.reach import Reach
from comparison.summary import Files, Spread, Summary
from comparison.table import Table, change, numbers, percent, share

GIB = 2**30
#: What is told of an exported file.
FILE = ("MB", "p50 ms", "p95 ms", "images/s", "top-1 %")


def cost(summary: Summary, entries: Sequence[Entry]) -> Table:
    header = ["model", "kind", "params M", "GMACs", "training images/s", "inference images/s", "latency p50 ms"]
    header += ["p95 ms", "training peak GiB", "inference peak GiB", "steps", "training min"]
    results = [r for s in summary.speeds for r in (s.training, s.inference) if r is not None]
    counted = any("joules_per_image" in r for r in results)
    header += ["training J/image", "inference J/image"] if counted else []
    rows = []
    for entry in entries:
        speed, score = summary.speed(entry), summary.score(entry, "equal") or summary.score(entry, "published")
        fast, train = speed.inference, speed.training
        rows.append(
            [
                entry.label,
                entry.kind,
                f"{entry.params / 1e6:.2f}",
                f"{entry.gmacs:.3f}",
                _cell(train, _rate),
                _cell(fast, _rate),
                _milliseconds(summary.latency(entry)),
                _cell(fast, lambda r: f"{r['latency_ms']['p95']:.2f}"),
                _cell(train, lambda r: f"{r['peak_bytes'] / GIB:.2f}"),
                _cell(fast, lambda r: f"{r['peak_bytes'] / GIB:.2f}"),
                "-" if score is None else f"{score.steps:,}",
                "-" if score is None else numbers(Spread.of([run.seconds / 60 for run in score.runs]), 1),
                *([_joules(train), _joules(fast)] if counted else []),
            ]
        )
    note = (
        "In brackets quartiles of the timed rounds; minutes are mean and deviation over seeds. Latency is that of one "
        "image. Peak memory is that of a process of its own that does nothing else, Python and torch included, once. A "
        "dash: it ran out of memory or failed, see the problems."
    )
    if counted:
        note += " Energy is that of the processor's packages or of the GPU alone, whatever else they do included."
    elif reasons := sorted({r["no_energy"] for r in results if "no_energy" in r}):
        note += f" Energy was not measured: {'; '.join(reasons)}."
    return Table("Cost", note, header, rows)


def _rate(result: dict[str, Any]) -> str:
    """Images a second, with quartiles; older records have none."""
    rate, seconds = result["images_per_second"], result.get("seconds", {}).get("wall")
    if seconds is None:
        return f"{rate:,.0f}"
    low, high = (rate * seconds["median"] / seconds[end] for end in ("high", "low"))
    return f"{rate:,.0f} ({low:,.0f} to {high:,.0f})"


def _milliseconds(found: tuple[float, float, float] | None) -> str:
    """Low quartile, median and high; older records have the median alone."""
    if found is None:
        return "-"
    low, middle, high = found
    return f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _joules(result: dict[str, Any] | None) -> str:
    return "-" if result is None or "joules_per_image" not in result else f"{result['joules_per_image']:.3g}"


def _cell(result: dict[str, Any] | None, text: Any) -> str:
    return "-" if result is None else text(result)


def exported(summary: Summary, plan: Plan, entries: Sequence[Entry]) -> Table:
    """The ONNX files of each network by each recipe."""
    header = ["model", "kind", "recipe"]
    for precision in plan.exported:
        header += [f"{precision}: {what}" for what in (*FILE, *_beside(precision))]
    rows = []
    for entry in entries:
        for recipe in plan.recipes:
            score = summary.score(entry, recipe)
            if score is not None:
                cells = [cell for precision in plan.exported for cell in _file(score.files.get(precision), precision)]
                rows.append([entry.label, entry.kind, recipe, *cells])
    note = (
        "Weights of the trainings on the most images as ONNX files, proved by the product, run by ONNX Runtime on the "
        "processor after the training: mean ± standard deviation over seeds. p50 and p95 are of one image. int8 is "
        "calibrated on training images. A dash: not exported, see the problems."
    )
    return Table("Exported", note, header, rows)


def _beside(precision: str) -> tuple[str, ...]:
    """Columns of a file that may answer otherwise than PyTorch does; the proof of fp32 says that it does not."""
    return () if precision == "fp32" else ("less PyTorch, points", "PyTorch's answer %")


def _file(files: Files | None, precision: str) -> list[str]:
    if files is None:
        return ["-"] * (len(FILE) + len(_beside(precision)))
    cells = [numbers(files.megabytes, 2), numbers(files.p50, 2), numbers(files.p95, 2)]
    cells += [numbers(files.images_per_second, 0), percent(files.accuracy)]
    return cells + ([change(files.change), percent(files.same)] if _beside(precision) else [])


def front(rows: Sequence[FrontRow]) -> Table:
    """Accuracy against latency and against training, with how sure each place on the front is."""
    header = ["model", "kind", "recipe", "top-1 %", "latency ms (quartiles)", "on that front in % of draws"]
    header += ["training min", "on that front in % of draws"]
    cells = []
    for row in rows:
        score = row.score
        latency = _milliseconds(row.latency)
        minutes = numbers(Spread.of([r.seconds / 60 for r in score.runs]), 1)
        cells.append(
            [
                *(score.entry.label, score.entry.kind, score.recipe, percent(score.accuracy), latency),
                *(_of_draws(row.by_latency), minutes, _of_draws(row.by_minutes)),
            ]
        )
    note = (
        f"{share(rows[0].score.fraction)}. On the front: no other is both as cheap and as good. The share is that of "
        f"{DRAWS:,} draws with replacement, of trainings and of timed images. With one seed it is not known, and a few "
        "seeds say little: 40 % and 60 % are alike."
    )
    return Table("Pareto front", note, header, cells)


def _of_draws(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"


def reached(rows: Sequence[Reach]) -> Table:
    """What a stated accuracy costs."""
    header = ["model", "kind", "top-1 %", "seeds", "by", "training min", "steps", "images seen", "1e15 multiply-adds"]
    cells = []
    for row in rows:
        about = [row.entry.label, row.entry.kind, f"{100 * row.target:g}", f"{len(row.found)} of {row.seeds}"]
        if not row.found:
            cells.append([*about, "not reached", *"----"])
            continue
        minutes = Spread.of([run.seconds / 60 for _, run in row.found])
        multiply_adds = Spread.of([run.gmacs / 1e6 for _, run in row.found])
        cells.append(
            [
                *about,
                "; ".join(row.ways),
                numbers(minutes, 2),
                numbers(row.spread("steps"), 0),
                numbers(row.spread("images"), 0),
                numbers(multiply_adds, 4),
            ]
        )
    note = (
        "Of each seed the training of least time, among all recipes and shares, whose last weights reach the accuracy: "
        "mean ± standard deviation over the seeds that do. Pretraining is counted, evaluation is not. The choice looks "
        "at held-out images, so it favours networks with more trainings a little."
    )
    return Table("Cost to reach an accuracy", note, header, cells)
