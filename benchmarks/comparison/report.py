"""Write ``results.json``, ``results.md``, the pictures and ``index.html`` from the records of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison.models import Entry
from comparison.options import PRETRAINED, Plan
from comparison.page import HOW, html
from comparison.pareto import fronts
from comparison.plots import draw_all
from comparison.pretraining import methods
from comparison.reach import reach
from comparison.significance import compare_pairs, pretraining_gains, rank, right_answers
from comparison.summary import Summary, summarize
from comparison.tables import Findings, all_tables
from visionzoo.files import write_json, write_text


def write_report(
    out: Path, plan: Plan, entries: Sequence[Entry], data: dict[str, Any], records: Sequence[dict[str, Any]]
) -> Path:
    """Write everything; returns the path of the page."""
    summary = summarize(entries, records, plan.options.budget.batch_size)
    ranked = {recipe: found for recipe in plan.recipes if (found := rank(entries, records, recipe)) is not None}
    front = fronts(summary, plan.recipes)
    pictures = draw_all(summary, entries, front, ranked, out)
    right = right_answers(out, entries, records)
    pairs = compare_pairs(right, entries)
    found = Findings(pairs, pretraining_gains(right, entries), front, reach(summary, plan.reach))
    tables = all_tables(summary, plan, entries, found)
    facts, how = what_was_run(plan, entries, data, records, summary), how_it_was_run(records)
    write_json(out / "results.json", _json(plan, entries, data, records))
    title = plan.options.title
    text = [
        f"# {title}",
        "",
        "Written by `benchmarks/cnn_vs_vit.py`; not by hand. `docs/benchmarks.md` says how to read it.",
    ]
    text += ["", *(f"- {fact}" for fact in facts), ""]
    for caption, path in pictures.items():
        text += [f"![{caption}]({path.name})", ""]
    text += [table.markdown() for table in tables]
    if summary.problems:
        text += ["## Problems", "", *(f"- {p}" for p in summary.problems), ""]
    text += [f"## {HOW}", "", *(f"- {line}" for line in how)]
    write_text(out / "results.md", "\n".join(text).rstrip() + "\n")
    page = out / "index.html"
    shown = html(
        title, facts, pictures, tables, summary.problems, how, summary=summary, pairs=pairs, classes=data["classes"]
    )
    write_text(page, shown)
    return page


def what_was_run(
    plan: Plan, entries: Sequence[Entry], data: dict[str, Any], records: Sequence[dict[str, Any]], summary: Summary
) -> list[str]:
    """The budget, the data, the pretraining, how much of it; one line each."""
    options, budget = plan.options, plan.options.budget
    amount = f"{budget.steps:,} steps" if budget.steps else f"{budget.minutes:g} minutes of training"
    limit = options.data.eval_limit
    scored = f" ({limit:,} of them scored)" if limit is not None and limit < data["held_out_images"] else ""
    facts = [
        f"Budget: {amount} of {budget.batch_size} images at {options.image_size} pixels, {options.precision}, "
        f"{options.memory_format.replace('_', ' ')}, from scratch; {len(plan.seeds)} seed(s): "
        f"{', '.join(map(str, plan.seeds))}.",
        f"Data: {data['name']}, {data['train_images']:,} training and {data['held_out_images']:,} held-out images"
        f"{scored} of {data['classes']} classes; the last weights are scored, nothing is chosen on the held-out "
        "images.",
    ]
    if PRETRAINED in plan.recipes:
        facts.append(_pretraining(plan, entries, data))
    trained = [r for r in records if r["kind"] == "train" and r["status"] == "done"]
    facts.append(f"Trainings: {len(trained)}. Problems: {len(summary.problems)}.")
    return facts


def how_it_was_run(records: Sequence[dict[str, Any]]) -> list[str]:
    """Each machine with its state of the code and its packages, and the commands that were given there."""
    found: dict[str, list[str]] = {}
    for machine in _machines(records):
        where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
        git = machine["git"] or {}
        place = (
            f"{where}, commit {str(git.get('commit', 'unknown'))[:10]}{' with changes' if git.get('dirty') else ''}; "
            + ", ".join(f"{k} {v}" for k, v in sorted(machine["versions"].items()))
        )
        command = f"`{machine['command']}` on {machine['date']}, load {machine['load']:.1f} at the start"
        found.setdefault(place, []).append(command)
    return [line for place, commands in found.items() for line in (f"{place}:", *commands)]


def _pretraining(plan: Plan, entries: Sequence[Entry], data: dict[str, Any]) -> str:
    """How networks were pretrained, and which were not."""
    options = plan.options
    how, left_out = methods(entries, options.image_size, options.pretrain.method)
    label = {e.name: e.label for e in entries}
    by = "; ".join(f"{label[name]} by {method}" for name, method in how.items())
    text = (
        f"Pretrained: {options.pretrain.steps:,} steps of {options.budget.batch_size} images on all "
        f"{data['train_images']:,} training images without labels, then the equal recipe: {by}."
    )
    reasons = "; ".join(f"{label[name]} ({why})" for name, why in left_out.items())
    return f"{text} Left out: {reasons}." if reasons else text


def _machines(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every state of machine and code that a record comes from, once; the load and the hour do not count."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        machine = record["machine"]
        found.setdefault(_identity(machine), machine)
    return list(found.values())


def _identity(machine: dict[str, Any]) -> str:
    return repr(sorted((k, repr(v)) for k, v in machine.items() if k not in ("load", "date")))


def _json(
    plan: Plan, entries: Sequence[Entry], data: dict[str, Any], records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    machines = _machines(records)
    places = {_identity(m): i for i, m in enumerate(machines)}
    rows = [{**r, "machine": places[_identity(r["machine"])]} for r in records]
    settings = {**plan.settings(), "seeds": plan.seeds, "fractions": plan.fractions}
    models = [asdict(e) for e in entries]
    return {"settings": settings, "data": data, "models": models, "machines": machines, "rows": rows}
