"""The pages of released models: one row for each model and data set, and what they make of changed images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from comparison.imagenet_c import CORRUPTIONS, mean_corruption_error

from released.maps_part import where_they_look
from released.robust import agreements
from visionzoo.report import write_page
from visionzoo.report.charts import Chart, ChartLine
from visionzoo.report.components import PageSection, Paragraph, SortedTable, TableCell

TONES = ("one", "two", "three")
NUMBERS = (
    ("top-1 %", "top1", ".2f"),
    ("top-5 %", "top5", ".2f"),
    ("ECE %", "ece", ".1f"),
    ("params M", "param_count", ".2f"),
    ("pixels", "img_size", "d"),
    ("crop", "crop_pct", ".3f"),
    ("classes", "classes", "d"),
    ("images", "images", ",d"),
)


def write_results(out: Path, rows: Sequence[dict[str, Any]], notes: Sequence[str], problems: Sequence[str]) -> Path:
    """Write the page, and give its path."""
    cells = [
        [
            TableCell(row["model"]),
            TableCell(row["data"]),
            *(TableCell(format(row[name], form), row[name]) for _, name, form in NUMBERS),
            TableCell(row["interpolation"]),
        ]
        for row in rows
    ]
    columns = [("model", False), ("data", False), *((title, True) for title, *_ in NUMBERS), ("interpolation", False)]
    caption = "Classes is among how many a model was asked. The preprocessing and test size are the model's own."
    parts: list[Any] = [SortedTable("released", caption, columns, cells, searched=True)]
    parts += [Paragraph(note, "note") for note in notes]
    trouble = [Paragraph(problem, "warning") for problem in problems]
    sections = [PageSection("results", "Results", parts), PageSection("problems", "Problems", trouble)]
    return write_page(out, "Released models", sections)


def write_robustness(
    out: Path,
    found: dict[str, dict[str, Any]],
    baseline: str | None,
    settings: dict[str, Any],
    pictures: Sequence[np.ndarray] = (),
) -> Path:
    """The page of :mod:`released.robust`: curves, tables, how errors and layers agree, and where models look.

    Args:
        out: the file to write.
        found: model -> look -> finding.
        baseline: whose mCE is 100.
        settings: what was asked.
        pictures: that the maps are of, where maps were asked for.
    """
    curves = [
        ("occlusion", "Patches left out", "share of 14 x 14 patches"),
        ("shuffle", "Patches shuffled", "patches along an edge"),
        ("resolution", "Detail left", "share of the pixels along an edge"),
        ("input_size", "Input size", "pixels of an edge, same weights"),
        ("pgd", "Adversary (PGD, 10 steps)", "largest change, of 255"),
    ]
    charts: list[Any] = []
    for look, title, axis in curves:
        lines = [
            ChartLine(label, list(zip(looks[look]["x"], (100 * a for a in looks[look]["accuracy"]), strict=True)),
                      TONES[i % len(TONES)], dashed=i >= len(TONES), dots=True)
            for i, (label, looks) in enumerate(found.items()) if look in looks and looks[look]["x"]
        ]  # fmt: skip
        rising = [ChartLine(x.name, sorted(x.points), x.tone, x.dashed, x.dots) for x in lines]
        if lines:
            charts.append(Chart(look, f"{title}: top-1, %", rising, x_name=axis, bounds=(0.0, 100.0)))
    charts += [
        Paragraph(f"{label} is not asked at {why}", "note")
        for label, looks in found.items()
        for why in looks.get("input_size", {}).get("left_out", [])
    ]
    sections = [
        PageSection("summary", "Summary", [_overview(found, baseline)]),
        PageSection("curves", "Curves", charts),
        PageSection("corruptions", "ImageNet-C", _corruptions(found)),
        PageSection("agreement", "Agreement", _agreement(found)),
        PageSection("maps", "Where they look", where_they_look(found, pictures)),
    ]
    subtitle = f"{settings['images']:,} images of {settings['data']}"
    return write_page(out, "Robustness", sections, subtitle=subtitle)


def _number(value: float | None, scale: float = 100.0) -> TableCell:
    return TableCell("-", "") if value is None else TableCell(f"{scale * value:.1f}", scale * value)


def _mce(looks: dict[str, Any], reference: dict[str, Any] | None) -> float | None:
    errors = looks.get("imagenet_c")
    if not errors or not reference or not reference.get("imagenet_c"):
        return None
    return mean_corruption_error(errors, reference["imagenet_c"])[0]


def _overview(found: dict[str, dict[str, Any]], baseline: str | None) -> SortedTable:
    """One row for each model, with the columns that anybody has a value in."""
    reference = found.get(baseline) if baseline else None
    table: dict[str, list[TableCell]] = {}
    for looks in found.values():
        own, shape, strange = looks.get("clean", {}), looks.get("shape_texture", {}), looks.get("ood", {})
        row = {
            "top-1 %": _number(own.get("accuracy")),
            "ECE %": _number(own.get("ece")),
            "mCE": _number(_mce(looks, reference), 1.0),
            "shape %": _number(shape.get("shape")),
            "texture %": _number(shape.get("texture")),
            "share of shape": _number(shape.get("shape_share")),
        }
        for name, title in (("energy", "energy"), ("max_softmax", "max-softmax")):
            row[f"AUROC {title}"] = _number(strange.get(name, {}).get("auroc"))
            row[f"FPR95 {title}"] = _number(strange.get(name, {}).get("fpr95"))
        row["transfer top-1 %"] = _number(looks.get("transfer", {}).get("accuracy"))
        for name, cell in row.items():
            table.setdefault(name, []).append(cell)
    kept = {name: cells for name, cells in table.items() if any(cell.order != "" for cell in cells)}
    rows = [[TableCell(label), *cells] for label, *cells in zip(found, *kept.values(), strict=True)]
    said = []
    if any("imagenet_c" in looks for looks in found.values()):
        said.append(f"mCE is of {baseline}'s errors." if baseline else "No baseline was given for mCE.")
    for moved in [looks["transfer"] for looks in found.values() if "transfer" in looks][:1]:
        said.append(
            f"Transfer: a linear classifier on frozen features, {moved['train_images']:,} training images of "
            f"{moved['classes']} other classes, {moved['images']:,} held out."
        )
    columns = [("model", False), *((name, True) for name in kept)]
    return SortedTable("overview", " ".join(said), columns, rows, searched=True)


def _corruptions(found: dict[str, dict[str, Any]]) -> list[Any]:
    having = {label: looks["imagenet_c"] for label, looks in found.items() if looks.get("imagenet_c")}
    if not having:
        return []
    names = list(next(iter(having.values())))
    rows = [
        [TableCell(label), *(_number(sum(errors[n]) / len(errors[n])) for n in names)]
        for label, errors in having.items()
    ]
    columns = [("model", False), *((n.replace("_", " "), True) for n in names)]
    parts: list[Any] = [SortedTable("c", "Mean top-1 error of five severities, %.", columns, rows)]
    if missing := [n for n in CORRUPTIONS if n not in names]:
        text = f"{', '.join(missing)} is left out: its photographs come with `pip install --no-deps imagecorruptions`."
        parts.append(Paragraph(f"{len(names)} of {len(CORRUPTIONS)} corruptions; {text}", "warning"))
    return parts


def _agreement(found: dict[str, dict[str, Any]]) -> list[Any]:
    rows = []
    for one, other, kappa in agreements(found):
        cka = found[one].get(f"cka {other}", {}).get("cka")
        last = None if cka is None else cka[-1][-1]
        cells = [TableCell("-", "") if v is None or v != v else TableCell(f"{v:.2f}", v) for v in (kappa, last)]
        rows.append([TableCell(one), TableCell(other), *cells])
    caption = (
        "Kappa: whether two are wrong on the same images, 0 is chance. CKA: whether their last maps hold the same."
    )
    columns = [("one", False), ("other", False), ("kappa of errors", True), ("CKA of the last maps", True)]
    return [SortedTable("pairs", caption, columns, rows), *_layers(found)] if rows else []


def _layers(found: dict[str, dict[str, Any]]) -> list[Any]:
    """CKA of every two levels of every two models."""
    having = [(one, name.removeprefix("cka "), looks[name]["cka"]) for one, looks in found.items() for name in looks
              if name.startswith("cka ")]  # fmt: skip
    if not having:
        return []
    levels = max(len(row) for *_, matrix in having for row in matrix)
    rows = []
    for one, other, matrix in having:
        for level, values in enumerate(matrix, 1):
            cells = [TableCell("-", "") if v != v else TableCell(f"{v:.2f}", v) for v in values]
            cells += [TableCell("", "")] * (levels - len(values))
            rows.append([TableCell(one), TableCell(f"{level}", level), TableCell(other), *cells])
    columns = [
        ("one", False),
        ("its level", True),
        ("other", False),
        *((f"level {k + 1}", True) for k in range(levels)),
    ]
    caption = "CKA of the levels of two models' pyramids, the finest first, maps averaged over their places."
    return [SortedTable("layers", caption, columns, rows, searched=True, folded=True)]
