"""``visionzoo predict RUN IMAGE...``"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from visionzoo.cli.commands.output import check_target, emit_csv, emit_json

if TYPE_CHECKING:
    from visionzoo.inference.classifier import Report


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="name what is in images",
        description="Name what is in images with a trained classifier. On a terminal the answer is a table, "
        "elsewhere CSV. Images that cannot be read are listed, and the exit status is then 1.",
    )
    parser.add_argument(
        "run", metavar="RUN", help="run folder, folder with model.safetensors + config.json, or timm:NAME"
    )
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image files, or folders of them (searched at any depth)"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="answers for each image (default: 5)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--csv", nargs="?", const="-", metavar="FILE", help="write CSV, one row for each image")
    target.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON; without FILE to the terminal")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> int:
    check_target("--csv", args.csv, ".csv")
    check_target("--json", args.json, ".json")
    from visionzoo.inference.classifier import ImageClassifier

    classifier = ImageClassifier.load(args.run, device=args.device)
    report = classifier.report(args.images, top_k=args.top_k, batch_size=args.batch_size)
    if args.json:
        emit_json(_records(report), args.json)
    elif args.csv or not sys.stdout.isatty():
        emit_csv(*_rows(report), args.csv or "-")
    else:
        _print_table(report)
    for image in report.unreadable:
        print(f"cannot read {image.name}: {image.reason}", file=sys.stderr)
    return 1 if report.unreadable else 0


def _reasons(report: Report) -> dict[int, str]:
    return {image.position: image.reason for image in report.unreadable}


def _records(report: Report) -> list[dict[str, Any]]:
    reasons = _reasons(report)
    records: list[dict[str, Any]] = []
    for i, (name, prediction) in enumerate(zip(report.names, report.predictions, strict=True)):
        if prediction is None:
            records.append({"image": name, "error": reasons[i]})
        else:
            answers = [{"label": label, "probability": round(p, 6)} for label, p in prediction]
            records.append({"image": name, "predictions": answers})
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
        print(f"images in {folder}:")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    table.add_column("label", style="bold")
    table.add_column("", justify="right")
    table.add_column("then", style="dim", overflow="ellipsis", no_wrap=True)
    for name, prediction in zip(names, report.predictions, strict=True):
        if prediction is None:
            table.add_row(escape(name), "[red]cannot be read", "", "")
            continue
        (label, p), *others = prediction
        then = ", ".join(f"{escape(o)} {q:.1%}" for o, q in others)
        table.add_row(escape(name), escape(label), f"{p:.1%}", then)
    Console().print(table)


def _without_common_folder(names: list[str]) -> tuple[list[str], str]:
    """Names relative to the folder that they share, and that folder; it is empty where there is none to speak of."""
    folders = {os.path.dirname(name) for name in names}
    if len(names) < 2 or "" in folders or len({os.path.isabs(folder) for folder in folders}) > 1:
        return names, ""
    common = os.path.commonpath(folders)
    return ([os.path.relpath(name, common) for name in names], common) if common else (names, "")
