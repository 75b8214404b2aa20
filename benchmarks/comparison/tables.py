"""The tables of the page, as headers and rows of text; Markdown and HTML are made of the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comparison.corruptions import CORRUPTIONS
from comparison.models import Entry
from comparison.options import PRETRAINED, Plan
from comparison.pareto import DRAWS, FrontRow
from comparison.reach import Reach
from comparison.recipes import PUBLISHED, Recipe, published
from comparison.significance import Gain, Pair
from comparison.summary import Spread, Summary
from visionzoo.metrics.differences import Difference

GIB = 2**30


@dataclass(frozen=True)
class Table:
    """A title, a sentence on how to read it, and cells."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.note, ""] if self.note else [f"## {self.title}", ""]
        lines += ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in self.rows), ""])


@dataclass(frozen=True)
class Findings:
    """What is concluded from the scores."""

    pairs: Sequence[Pair]
    gains: Sequence[Gain]
    front: Sequence[FrontRow]
    reached: Sequence[Reach]


def percent(spread: Spread | None) -> str:
    """``71.2 ± 0.4``: mean and standard deviation over seeds, in per cent."""
    if spread is None:
        return ""
    text = f"{100 * spread.mean:.1f}"
    return text if spread.deviation is None else f"{text} ± {100 * spread.deviation:.1f}"


def all_tables(summary: Summary, plan: Plan, entries: Sequence[Entry], findings: Findings) -> list[Table]:
    """Those there are results for."""
    found = [accuracy(summary, plan, entries), cost(summary, entries)]
    if findings.front:
        found.append(front(findings.front))
    if findings.reached:
        found.append(reached(findings.reached))
    if findings.pairs:
        found.append(differences(findings.pairs))
    if summary.pretrained:
        found.append(pretraining(summary, findings.gains))
    if any(len(shares) > 1 for shares in plan.fractions.values()):
        found.append(fractions(summary, plan, entries))
    if summary.frozen:
        found.append(frozen(summary))
    if plan.corruptions:
        found.append(robustness(summary, plan, entries))
    found.append(recipes(plan, entries))
    return found


def accuracy(summary: Summary, plan: Plan, entries: Sequence[Entry]) -> Table:
    columns = [f"{r} recipe: {what}" for r in plan.recipes for what in ("top-1 %", "corrupted top-1 %", "ECE %")]
    rows = []
    for entry in entries:
        cells: list[str] = []
        for recipe in plan.recipes:
            score = summary.score(entry, recipe)
            cells += (
                ["-", "-", "-"]
                if score is None
                else [percent(score.accuracy), percent(score.mean_corrupted), percent(score.ece)]
            )
        rows.append([entry.label, entry.kind, *cells])
    seeds = f"{len(plan.seeds)} seeds: mean ± standard deviation" if len(plan.seeds) > 1 else "one seed"
    note = f"All images. {seeds}. Corrupted: mean of all corruptions and severities. ECE (15 bins): lower is better."
    return Table("Accuracy", note, ["model", "kind", *columns], rows)


def points(seen: Difference) -> str:
    """``+1.2 (-0.3 to +2.7)``: a difference and its interval, in points."""
    return f"{100 * seen.value:+.1f} ({100 * seen.low:+.1f} to {100 * seen.high:+.1f})"


def differences(pairs: Sequence[Pair]) -> Table:
    rows = []
    for pair in pairs:
        about = [pair.one.label, pair.other.label, pair.recipe, f"{100 * pair.fraction:g} %"]
        rows.append([*about, points(pair.difference), f"{pair.adjusted:.3f}", pair.verdict])
    note = (
        "Every pair on the same held-out images: paired bootstrap over images and seeds, 95 % interval, p after Holm "
        "among all rows. What would be shown is the smallest true difference that is found 8 times of 10, before Holm."
    )
    header = ["one", "other", "recipe", "share", "one less other, points", "p (Holm)", "verdict"]
    return Table("Differences", note, header, rows)


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
                _cell(train, lambda r: f"{r['images_per_second']:,.0f}"),
                _cell(fast, lambda r: f"{r['images_per_second']:,.0f}"),
                _cell(fast, lambda r: f"{r['latency_ms']['p50']:.2f}"),
                _cell(fast, lambda r: f"{r['latency_ms']['p95']:.2f}"),
                _cell(train, lambda r: f"{r['peak_bytes'] / GIB:.2f}"),
                _cell(fast, lambda r: f"{r['peak_bytes'] / GIB:.2f}"),
                "-" if score is None else f"{score.steps:,}",
                "-" if score is None else f"{score.minutes:.1f}",
                *([_joules(train), _joules(fast)] if counted else []),
            ]
        )
    note = (
        "Latency is that of one image. Peak memory is that of a process of its own that does nothing else, Python and "
        "torch included. A dash: it ran out of memory or failed, see the problems."
    )
    if counted:
        note += " Energy is that of the processor's packages or of the GPU alone, whatever else they do included."
    elif reasons := sorted({r["no_energy"] for r in results if "no_energy" in r}):
        note += f" Energy was not measured: {'; '.join(reasons)}."
    return Table("Cost", note, header, rows)


def _joules(result: dict[str, Any] | None) -> str:
    return "-" if result is None or "joules_per_image" not in result else f"{result['joules_per_image']:.3g}"


def _cell(result: dict[str, Any] | None, text: Any) -> str:
    return "-" if result is None else text(result)


def front(rows: Sequence[FrontRow]) -> Table:
    """Accuracy against latency and against training, with how sure each place on the front is."""
    header = ["model", "kind", "recipe", "top-1 %", "latency ms (quartiles)", "on that front in % of draws"]
    header += ["training min", "on that front in % of draws"]
    cells = []
    for row in rows:
        score = row.score
        latency = "-"
        if row.latency is not None:
            low, middle, high = row.latency
            latency = f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        minutes = numbers(Spread.of([r.seconds / 60 for r in score.runs]), 1)
        cells.append(
            [
                *(score.entry.label, score.entry.kind, score.recipe, percent(score.accuracy), latency),
                *(_share(row.by_latency), minutes, _share(row.by_minutes)),
            ]
        )
    note = (
        f"All images. On the front: no other is both as cheap and as good. The share is that of {DRAWS:,} draws with "
        "replacement, of trainings and of timed images. With one seed it is not known, and a few seeds say little: "
        "40 % and 60 % are alike."
    )
    return Table("Pareto front", note, header, cells)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"


def numbers(spread: Spread, digits: int) -> str:
    """``3.2 ± 0.1``: mean and standard deviation over seeds."""
    text = f"{spread.mean:,.{digits}f}"
    return text if spread.deviation is None else f"{text} ± {spread.deviation:,.{digits}f}"


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


def pretraining(summary: Summary, gains: Sequence[Gain]) -> Table:
    """What was pretrained, and what came of it."""
    header = [
        "model",
        "method",
        "steps",
        "pretraining min",
        "share with labels",
        "less from scratch, points",
        "p (Holm)",
    ]
    cells = []
    for one in summary.pretrained:
        minutes = numbers(Spread.of([s / 60 for s in one.seconds.values()]), 1)
        about = [one.entry.label, one.method, f"{one.steps:,}", minutes]
        mine = [g for g in gains if g.entry == one.entry]
        for gain in mine:
            share = f"{100 * gain.fraction:g} %"
            cells.append([*about, share, points(gain.difference), f"{gain.adjusted:.3f}", gain.verdict])
        if not mine:
            cells.append([*about, *"----"])
    note = (
        "The same network by the equal recipe, from pretrained weights less from random ones, as in the differences; p "
        "after Holm among these rows. Both have the same steps with labels; the pretraining comes on top."
    )
    return Table("Masked pretraining", note, [*header, "verdict"], cells)


def fractions(summary: Summary, plan: Plan, entries: Sequence[Entry]) -> Table:
    columns = [(r, f) for r, shares in plan.fractions.items() if len(shares) > 1 for f in shares]
    by = {(s.entry, s.recipe, s.fraction): s for s in summary.scores}
    rows = [
        [e.label, e.kind, *(percent(s.accuracy) if (s := by.get((e, r, f))) else "-" for r, f in columns)]
        for e in entries
    ]
    header = ["model", "kind", *(f"{r}, {100 * f:g} %" for r, f in columns)]
    note = (
        "Top-1 % by the share of training images. The budget is the same for every share, so a small one is seen often."
    )
    return Table("Data efficiency", note, header, rows)


def frozen(summary: Summary) -> Table:
    rows = [[f.model, f"{100 * f.fraction:g} %", f"{f.train_images:,}", percent(f.accuracy)] for f in summary.frozen]
    note = "Pretrained on other images and not trained here: a linear classifier on its features."
    return Table("A frozen backbone", note, ["model", "share", "training images", "top-1 %"], rows)


def robustness(summary: Summary, plan: Plan, entries: Sequence[Entry]) -> Table:
    rows = []
    for entry in entries:
        for recipe in plan.recipes:
            score = summary.score(entry, recipe)
            if score is None or not score.corrupted:
                continue
            for name in plan.corruptions:
                rows.append(
                    [entry.label, recipe, name, percent(score.clean), *(percent(s) for s in score.corrupted[name])]
                )
    note = "Top-1 % at severities 1 to 5. Strengths: " + "; ".join(
        f"{n} {', '.join(f'{s:g}' for s in CORRUPTIONS[n].strengths)} ({CORRUPTIONS[n].unit})" for n in plan.corruptions
    )
    return Table("Robustness", note + ".", ["model", "recipe", "corruption", "none", *"12345"], rows)


def recipes(plan: Plan, entries: Sequence[Entry]) -> Table:
    """The recipes of this comparison, as they were scaled to its batch."""
    used: dict[str, tuple[Recipe, list[str]]] = {}
    if {"equal", PRETRAINED} & set(plan.recipes):
        used["equal"] = (plan.options.equal, [e.label for e in entries])
    if "published" in plan.recipes:
        for entry in entries:
            key = published(entry.name, entry.kind)
            used.setdefault(key, (PUBLISHED[key], []))[1].append(entry.label)
    batch = plan.options.budget.batch_size
    rows = [
        [
            name,
            ", ".join(models),
            r.optimizer,
            f"{r.scaled_lr(batch):.3g}",
            f"{r.weight_decay:g}",
            f"{100 * r.warmup:.2g} %",
            r.loss.replace("_", " "),
            _mixing(r),
            f"{r.drop_path:g}",
            _augmentation(r),
            r.left_out or "-",
            r.source,
        ]
        for name, (r, models) in used.items()
    ]
    header = ["recipe", "models", "optimizer", f"lr at batch {batch}", "weight decay", "warm-up", "loss", "mixing"]
    header += ["drop path", "augmentation", "left out", "source"]
    return Table("Recipes", "", header, rows)


def _mixing(recipe: Recipe) -> str:
    parts = [("mixup", recipe.mixup), ("cutmix", recipe.cutmix), ("smoothing", recipe.label_smoothing)]
    return ", ".join(f"{name} {value:g}" for name, value in parts if value) or "none"


def _augmentation(recipe: Recipe) -> str:
    parts = [f"{recipe.crop.replace('_', ' ')} crop"]
    if recipe.crop == "random_resized":
        parts[0] += f" {recipe.crop_scale[0]:g}-{recipe.crop_scale[1]:g}"
    if recipe.hflip:
        parts.append("flip")
    if recipe.policy == "randaugment":
        parts.append(f"RandAugment {recipe.magnitude:g}")
    elif recipe.policy != "none":
        parts.append(recipe.policy.replace("_", " "))
    if recipe.color_jitter:
        parts.append(f"colour {recipe.color_jitter:g}")
    if recipe.erasing:
        parts.append(f"erasing {recipe.erasing:g}")
    return ", ".join(parts)
