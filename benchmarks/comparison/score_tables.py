"""The tables of how good networks are: accuracy, differences, shares of the images, corruptions."""

from __future__ import annotations

from collections.abc import Sequence

from comparison.corruptions import CORRUPTIONS
from comparison.models import Entry
from comparison.options import Plan
from comparison.significance import Gain, Pair
from comparison.summary import Spread, Summary
from comparison.table import Table, numbers, of_seeds, percent, points, probability, share


def accuracy(summary: Summary, plan: Plan, entries: Sequence[Entry]) -> Table:
    recipes = plan.on_most_images
    columns = [f"{r} recipe: {what}" for r in recipes for what in ("top-1 %", "corrupted top-1 %", "ECE %")]
    rows = []
    for entry in entries:
        cells: list[str] = []
        for recipe in recipes:
            score = summary.score(entry, recipe)
            cells += (
                ["-", "-", "-"]
                if score is None
                else [of_seeds(score.accuracy, len(plan.seeds)), percent(score.mean_corrupted), percent(score.ece)]
            )
        rows.append([entry.label, entry.kind, *cells])
    seeds = f"{len(plan.seeds)} seeds: mean ± standard deviation" if len(plan.seeds) > 1 else "one seed"
    note = (
        f"{share(summary.largest)}. {seeds}. Corrupted: mean of all corruptions and severities. ECE (15 bins): lower "
        "is better; of the softmax, also where the loss was BCE, which trains no softmax."
    )
    if fewer := [r for r in plan.recipes if r not in recipes]:
        note += f" The {' and '.join(fewer)} recipe was run on fewer images alone: see the data efficiency."
    return Table("Accuracy", note, ["model", "kind", *columns], rows)


def differences(pairs: Sequence[Pair]) -> Table:
    rows = []
    for pair in pairs:
        about = [pair.one.label, pair.other.label, pair.recipe, f"{100 * pair.fraction:g} %"]
        rows.append([*about, points(pair.difference), probability(pair.adjusted), pair.verdict])
    note = (
        "Every pair on the same held-out images: paired bootstrap over images and seeds, 95 % interval, p after Holm "
        "among all rows. What would be shown is the smallest true difference that is found 8 times of 10, before Holm."
    )
    header = ["one", "other", "recipe", "share", "one less other, points", "p (Holm)", "verdict"]
    return Table("Differences", note, header, rows)


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
            part = f"{100 * gain.fraction:g} %"
            cells.append([*about, part, points(gain.difference), probability(gain.adjusted), gain.verdict])
        if not mine:
            cells.append([*about, *"----"])
    note = (
        "The same network by the equal recipe, from pretrained weights less from random ones, as in the differences; p "
        "after Holm among these rows. Both have the same steps with labels; the pretraining comes on top."
    )
    return Table("Masked pretraining", note, [*header, "verdict"], cells)


def fractions(summary: Summary, plan: Plan, entries: Sequence[Entry]) -> Table:
    columns = [(r, f) for r, shares in plan.fractions.items() if len(shares) > 1 for f in shares]
    by = {(s.entry, s.recipe, s.fraction): of_seeds(s.accuracy, len(plan.seeds)) for s in summary.scores}
    rows = [[e.label, e.kind, *(by.get((e, r, f), "-") for r, f in columns)] for e in entries]
    header = ["model", "kind", *(f"{r}, {100 * f:g} %" for r, f in columns)]
    power = plan.options.budget.share_exponent
    steps = f"A share f of them has f ** {power:g} of the steps" if power else "The budget is the same for every share"
    seen = "" if power == 1 else ", so a small one is seen more often"
    note = f"Top-1 % by the share of training images. {steps}{seen}."
    return Table("Data efficiency", note, header, rows)


def frozen(summary: Summary) -> Table:
    rows = [[f.model, f"{100 * f.fraction:g} %", f"{f.train_images:,}", percent(f.accuracy)] for f in summary.frozen]
    note = "Not trained here: a linear classifier on its features. Its weights are those that were given."
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
