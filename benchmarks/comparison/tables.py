"""All tables of the page, as headers and rows of text; Markdown and HTML are made of the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comparison.cost_tables import cost, exported, front, reached
from comparison.models import Entry
from comparison.options import PRETRAINED, Plan
from comparison.pareto import FrontRow
from comparison.reach import Reach
from comparison.recipes import PUBLISHED, Recipe, published
from comparison.score_tables import accuracy, differences, fractions, frozen, pretraining, robustness
from comparison.significance import Gain, Pair
from comparison.summary import Summary
from comparison.table import Table


@dataclass(frozen=True)
class Findings:
    """What is concluded from the scores."""

    pairs: Sequence[Pair]
    gains: Sequence[Gain]
    front: Sequence[FrontRow]
    reached: Sequence[Reach]


def all_tables(summary: Summary, plan: Plan, entries: Sequence[Entry], findings: Findings) -> list[Table]:
    """Those there are results for."""
    found = [accuracy(summary, plan, entries), cost(summary, entries)]
    if plan.exported:
        found.append(exported(summary, plan, entries))
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
