"""One HTML file with everything in it: tables that sort and filter, plots whose points open the run behind them, and a
box that says which network keeps given limits. Nothing comes from the network."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from comparison.models import Entry
from comparison.options import PRETRAINED
from comparison.significance import ALPHA, Pair
from comparison.summary import MB, Score, Summary
from comparison.table import Table, percent
from visionzoo.report.shell import as_inline_json

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { margin: 0 0 .4rem; font-size: 1rem; }
img, svg { max-width: 100%; } figure { margin: 1rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #e3e6ea; vertical-align: top; }
th { background: #f5f6f8; } th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, [data-run]:focus-visible { outline: 2px solid #2f6db5; }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
td.cnn { color: #b84f12; } td.vit { color: #2f6db5; } td.hybrid { color: #2c7a3f; } td.mlp { color: #6a4a96; }
.facts, .note { color: #4b5463; font-size: 13px; max-width: 70rem; }
#choose { display: flex; gap: 1rem; flex-wrap: wrap; } #choose input { width: 8rem; display: block; }
#run { position: fixed; right: 1rem; bottom: 1rem; background: #fff; border: 1px solid #c9ced6; padding: .8rem 1rem;
  border-radius: 8px; box-shadow: 0 4px 18px #0002; max-width: 24rem; font-size: 13px; }
#run dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .8rem; margin: 0; } #run dd { margin: 0; }
[data-run] { cursor: pointer; }
"""
HOW = "How it was run"
COLOURS = {"CNN": "#d9641e", "ViT": "#2f6db5", "hybrid": "#3d8b4f", "MLP": "#7a5aa6"}
SCRIPT = Path(__file__).with_name("page.js")
#: Of a plot, in its own units.
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 360, 56, 40


def html(
    title: str,
    facts: Sequence[str],
    pictures: Mapping[str, Path],
    tables: Sequence[Table],
    problems: Sequence[str],
    how: Sequence[str],
    *,
    summary: Summary,
    pairs: Sequence[Pair],
    classes: int,
) -> str:
    """The page as text."""
    runs = [_run(summary, score, pairs) for score in summary.scores]
    parts = [f"<h1>{escape(title)}</h1>", _list(facts, "facts")]
    if problems:
        parts += ["<h2>Problems</h2>", _list(problems, "problems")]
    if runs:
        parts += [
            _chooser(classes, files=any(run["files"] for run in runs)),
            "<h2>Accuracy against latency</h2>",
            _plot(summary.scores, runs),
        ]
    for caption, path in pictures.items():
        data = base64.b64encode(path.read_bytes()).decode()
        drawn = base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()
        image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        link = f'<a download="{path.stem}.svg" href="data:image/svg+xml;base64,{drawn}">Save as SVG</a>'
        parts += [f"<h2>{escape(caption)}</h2>", f"<figure>{image}<figcaption>{link}</figcaption></figure>"]
    parts += [_table(t, f"table-{i}") for i, t in enumerate(tables)]
    parts += [f"<h2>{HOW}</h2>", _list(how, "facts")]
    parts.append('<aside id="run" aria-live="polite" hidden></aside>')
    inline = as_inline_json({"runs": runs, "classes": classes})
    body = "\n".join(parts)
    body += f'\n<script type="application/json" id="data">{inline}</script>'
    body += f"\n<script>{SCRIPT.read_text(encoding='utf-8')}</script>"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style><link rel="icon" href="data:,">'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _key(entry: Entry, recipe: str, fraction: float) -> str:
    return f"{entry.label} {recipe} {fraction:g}"


def _run(summary: Summary, score: Score, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What the script knows of one network by one recipe on one share."""
    speed, same = summary.speed(score.entry), (score.recipe, score.fraction)
    mine = [p for p in pairs if (p.recipe, p.fraction) == same and score.entry in (p.one, p.other)]
    compared = {_key(p.other if p.one == score.entry else p.one, *same): p for p in mine}
    alike = [key for key, p in compared.items() if p.adjusted >= ALPHA or min(p.difference.seeds) == 1]
    quartiles = summary.latency(score.entry)
    latency = None if speed.inference is None else speed.inference["latency_ms"]["p50"]
    size = score.entry.params * 4 / MB
    most = summary.score(score.entry, score.recipe) or score  # of whose weights there are files
    files = {precision: found.megabytes.mean for precision, found in most.files.items()}
    facts = [
        ("kind", score.entry.kind),
        ("recipe", score.recipe),
        ("training images", f"{score.train_images:,} ({100 * score.fraction:g} %)"),
        ("steps", f"{score.steps:,}"),
        ("top-1 %", f"{percent(score.accuracy)}, {score.accuracy.count} seed(s)"),
        ("ECE %", percent(score.ece)),
        ("training", f"{score.minutes:.1f} min"),
        ("latency p50", "-" if latency is None else f"{latency:.2f} ms"),
        ("quartiles", "-" if quartiles is None else f"{quartiles[0]:.2f} to {quartiles[2]:.2f} ms"),
        ("weights", f"{size:.1f} MB in float32"),
        *((f"ONNX {precision}", f"{megabytes:.2f} MB") for precision, megabytes in files.items()),
    ]
    return {
        "key": _key(score.entry, *same),
        "name": f"{score.entry.label}, {score.recipe} recipe",
        "images": score.train_images,
        "accuracy": score.accuracy.mean,
        "ms": latency,
        "quartiles": quartiles,
        "mb": size,
        "files": files,
        "compared": list(compared),  # by name those that its answers were held against
        "alike": alike,
        "facts": facts,
    }


def _chooser(classes: int, *, files: bool) -> str:
    fields = (("images", "training images"), ("classes", f"classes (here {classes})"), ("ms", "milliseconds an image"))
    inputs = "".join(
        f'<label>{label}<input name="{name}" type="number" min="0" step="any"></label>'
        for name, label in (
            *fields,
            ("mb", "megabytes of weights"),
            *([("file", "megabytes of an ONNX file")] if files else []),
        )
    )
    return (
        f'<h2>Which should I take?</h2>\n<form id="choose">{inputs}</form>\n'
        '<p class="note" id="choice-note" aria-live="polite"></p>\n<ol id="survivors"></ol>'
    )


def _plot(scores: Sequence[Score], runs: Sequence[dict[str, Any]]) -> str:
    """Points that open their run; bars are one standard deviation over seeds, and the quartiles of the timed images.
    Those of the most training images."""
    most = max(score.train_images for score in scores)
    shown = [(i, s, r) for i, (s, r) in enumerate(zip(scores, runs, strict=True)) if s.train_images == most]
    shown = [one for one in shown if one[2]["ms"] is not None]
    if not shown:
        return '<p class="note">No latency was measured.</p>'
    logs = [math.log(ms) for *_, run in shown for ms in (run["ms"], run["quartiles"][0], run["quartiles"][2])]
    low, high = min(logs) - 0.25, max(logs) + 0.25
    values = [score.accuracy for _, score, _ in shown]
    bottom = 100 * min(v.mean - (v.deviation or 0) for v in values) - 3
    top = 100 * max(v.mean + (v.deviation or 0) for v in values) + 3

    def x(ms: float) -> float:
        return round(LEFT + (math.log(ms) - low) / (high - low) * (WIDTH - LEFT - 20), 1)

    def y(accuracy: float) -> float:
        return round((HEIGHT - BOTTOM) - (accuracy - bottom) / (top - bottom) * (HEIGHT - BOTTOM - 14), 1)

    parts = []
    for value in _ticks(bottom, top):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(value)}" y2="{y(value)}" stroke="#e6e8eb"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end" font-size="11">{value:g}</text>')
    for ms in _log_ticks(math.exp(low), math.exp(high)):
        parts.append(f'<text x="{x(ms)}" y="{HEIGHT - 22}" text-anchor="middle" font-size="11">{ms:g}</text>')
    parts.append(
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 4}" text-anchor="end" font-size="11">milliseconds of one image</text>'
        '<text x="4" y="11" font-size="11">top-1, %</text>'
    )
    for i, score, run in shown:
        at, accuracy, spread = x(run["ms"]), 100 * score.accuracy.mean, 100 * (score.accuracy.deviation or 0)
        colour = COLOURS[score.entry.kind]
        fill = colour if score.recipe == "equal" else "white"
        dashes = ' stroke-dasharray="3 2"' if score.recipe == PRETRAINED else ""
        label = escape(f"{run['name']}: {accuracy:.1f} %, {run['ms']:.2f} ms")
        early, _, late = map(x, run["quartiles"])
        parts.append(
            f'<path d="M{at} {y(accuracy - spread)}V{y(accuracy + spread)}M{early} {y(accuracy)}H{late}" '
            f'stroke="{colour}"/>'
        )
        parts.append(
            f'<circle cx="{at}" cy="{y(accuracy)}" r="7" fill="{fill}" stroke="{colour}" stroke-width="2"{dashes} '
            f'data-run="{i}" tabindex="0" role="button" aria-label="{label}"/>'
        )
    note = (
        "Orange is a CNN, blue a ViT, green a hybrid, violet an MLP; filled is the equal recipe, dashed the same after "
        "pretraining. Bars are one standard deviation over seeds, and the quartiles of the timed images. "
        "A point tells its run."
    )
    return (
        f'<figure><svg id="latency" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-family="sans-serif">'
        f'{"".join(parts)}</svg><figcaption class="note">{note} '
        '<button type="button" class="save" data-plot="latency">Save as SVG</button></figcaption></figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers between two: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max(s * power for s in (1, 2, 5) if s * power <= (high - low) / 3)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, not too close to each other."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1.0, 1.5, 2, 3, 4, 5, 7), (1.0, 2, 5), (1.0,)):
        found = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(found) <= 8:
            break
    return found


def _list(items: Sequence[str], kind: str) -> str:
    """Plain text with commands between backticks, as in the Markdown file."""
    shown = (re.sub("`(.+?)`", r"<code>\1</code>", escape(item)) for item in items)
    return f'<ul class="{kind}">' + "".join(f"<li>{item}</li>" for item in shown) + "</ul>"


def _table(table: Table, name: str) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(c)}</button></th>' for c in table.header)
    rows = "\n".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    search = (
        f'<p class="note"><label>Filter <input class="filter" type="search" data-table="{name}"></label> '
        f"<output>{len(table.rows)} rows</output></p>"
    )
    return (
        f"<h2>{escape(table.title)}</h2>{note}\n{search}\n"
        f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    )


def _cell(text: str) -> str:
    kind = f' class="{text.lower()}"' if text in COLOURS else ""
    return f"<td{kind}>{escape(text)}</td>"
