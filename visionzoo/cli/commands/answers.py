"""What a classifier said of images, as a table for people, CSV or JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from visionzoo.cli.commands.output import emit_csv, emit_json
from visionzoo.terminal import say, visible_name

if TYPE_CHECKING:
    from visionzoo.inference.classifier import Report


def emit_report(report: Report, *, csv: str | None, json: str | None, more: Mapping[str, str] | None = None) -> int:
    """Write a report where it was asked for, and list what could not be read.

    Args:
        report: of a classifier.
        csv: a file, ``-`` for stdout, or None; away from a terminal stdout gets CSV.
        json: the same.
        more: what JSON says of every image beside its answers.

    Returns:
        the exit status.
    """
    if json:
        emit_json(_records(report, more or {}), json)
    elif csv or not sys.stdout.isatty():
        emit_csv(*_rows(report), csv or "-")
    else:
        _print_table(report)
    for image in report.unreadable:
        say(visible_name(f"cannot read {image.name}: {image.reason}"), file=sys.stderr)
    return 1 if report.unreadable else 0


def _reasons(report: Report) -> dict[int, str]:
    return {image.position: image.reason for image in report.unreadable}


def _records(report: Report, more: Mapping[str, str]) -> list[dict[str, Any]]:
    reasons = _reasons(report)
    records: list[dict[str, Any]] = []
    for i, (name, prediction) in enumerate(zip(report.names, report.predictions, strict=True)):
        if prediction is None:
            records.append({"image": name, "error": reasons[i]})
        else:
            answers = [{"label": label, "probability": round(p, 6)} for label, p in prediction]
            records.append({"image": name, **more, "predictions": answers})
    return records


def _rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and one row for each image: the best answer, the next ones numbered from 2, and what went wrong."""
    reasons = _reasons(report)
    width = max((len(p) for p in report.predictions if p), default=1)
    header = ["image"]
    for rank in range(1, width + 1):
        end = "" if rank == 1 else f"_{rank}"
        header += [f"label{end}", f"probability{end}"]
    rows = []
    for i, (name, prediction) in enumerate(zip(report.names, report.predictions, strict=True)):
        cells = [cell for label, p in prediction or [] for cell in (label, f"{p:.6f}")]
        rows.append([name, *cells, *[""] * (2 * width - len(cells)), reasons.get(i, "")])
    return [*header, "error"], rows


def _print_table(report: Report) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    names, folder = _without_common_folder(report.names)
    if folder:
        say(f"images in {folder}:")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    table.add_column("label", style="bold")
    table.add_column("", justify="right")
    table.add_column("then", style="dim", overflow="ellipsis", no_wrap=True)
    for name, prediction in zip(names, report.predictions, strict=True):
        if prediction is None:
            table.add_row(escape(visible_name(name)), "[red]cannot be read", "", "")
            continue
        (label, p), *others = prediction
        then = ", ".join(f"{escape(visible_name(o))} {q:.1%}" for o, q in others)
        table.add_row(escape(visible_name(name)), escape(visible_name(label)), f"{p:.1%}", then)
    Console().print(table)


def _without_common_folder(names: list[str]) -> tuple[list[str], str]:
    """Names relative to the folder that they share, and that folder; it is empty where there is none to speak of."""
    folders = {os.path.dirname(name) for name in names}
    if len(names) < 2 or "" in folders or len({os.path.isabs(folder) for folder in folders}) > 1:
        return names, ""
    common = os.path.commonpath(folders)
    return ([os.path.relpath(name, common) for name in names], common) if common else (names, "")
