"""The page of released models: one row for each model and data set, to sort and to search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionzoo.report import write_page
from visionzoo.report.components import PageSection, Paragraph, SortedTable, TableCell

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
