"""``visionzoo export MODEL --out FOLDER``"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionzoo.cli.commands.arguments import (
    Subparsers,
    add_image_size,
    add_json,
    add_labels,
    add_model,
    add_weights,
    the_model,
)
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.cli.processes import StopSignal, scheduler_signals
from visionzoo.signals import TRY_AGAIN
from visionzoo.terminal import say

if TYPE_CHECKING:
    from visionzoo.export.write import Exported


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a model as a graph that runs without visionzoo, and prove it",
        description="Write a model as ONNX with everything that a program needs beside it, and compare the files with "
        "PyTorch on real pictures. Where they differ, nothing is written and the exit status is 1.",
    )
    parser.add_argument(
        "run", metavar="MODEL", nargs="?",
        help="run folder, timm:NAME, hf-hub:org/name, or the name of a backbone, CLIP or SAM with --weights",
    )  # fmt: skip
    add_model(parser, "MODEL, said in another place", required=False)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the folder that is written; it must not exist")
    add_weights(parser)
    add_image_size(parser)
    parser.add_argument(
        "--part",
        help="classifier, features, pyramid, clip, zero-shot or sam (default: all that the model is)",
    )
    add_labels(parser, "of a zero-shot classifier: with commas between them, or a text file with one on each line")
    parser.add_argument("--templates", action="append", metavar="T", help="of its labels, as for visionzoo zeroshot")
    parser.add_argument("--fixed-size", action="store_true", help="one image size, also for a backbone that takes any")
    parser.add_argument(
        "--to", choices=("onnx", "pt2", "aoti", "transformers"), default="onnx",
        help="onnx, torch.export's pt2, machine code by AOTInductor, or a folder of transformers (default: onnx)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16", "int8"), default="fp32",
        help="int8 is calibrated on --data.path; bf16 is for pt2 and aoti (default: fp32)",
    )  # fmt: skip
    parser.add_argument(
        "--data.path", dest="path", metavar="IMAGES", help="pictures to compare on (default: built-in photographs)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    try:
        with scheduler_signals():  # which would leave half a folder beside the target
            return _run(args)
    except StopSignal as stopped:
        say(f"stopped by {stopped}; nothing was written", file=sys.stderr)
        return TRY_AGAIN


def _run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    from visionzoo.export.failure import NotTheSame, need_export_extra

    if args.to == "onnx":
        need_export_extra()
    source = the_model(args.run, args.model)
    from visionzoo.cli.commands.zeroshot import named_templates, typed_labels
    from visionzoo.export.plans import Wish, load_model, make_plan
    from visionzoo.export.write import export_plan

    labels = None if args.labels is None else typed_labels(args.labels)
    wish = Wish(part=args.part, labels=labels, templates=named_templates(args.templates), fixed_size=args.fixed_size)
    model = load_model(source, weights=args.weights, image_size=args.image_size)
    try:
        if args.to == "transformers":
            done = _for_transformers(model, args)
        else:
            plan = make_plan(model, wish, source.rstrip("/").rpartition("/")[2])
            done = export_plan(plan, args.out, to=args.to, precision=args.precision, images=args.path)
    except NotTheSame as error:
        say(f"not exported: {error}", file=sys.stderr)
        return 1
    if args.json != "-":
        _print(done)
    if args.json is not None:
        emit_json(_record(done), args.json)
    return 0


def _for_transformers(model: Any, args: argparse.Namespace) -> Exported:
    from visionzoo.export.to_transformers import export_transformers
    from visionzoo.export.write import Exported

    fixed = {"--part": args.part, "--labels": args.labels, "--precision": args.precision != "fp32"}
    if said := [option for option, value in fixed.items() if value]:
        raise ValueError(f"a folder of transformers has the whole model in fp32; leave {', '.join(said)} out")
    proof, images = export_transformers(model, args.out, images=args.path)
    size = (Path(args.out) / "model.safetensors").stat().st_size
    return Exported(folder=Path(args.out), proofs=(proof,), images=images, sizes={"model": size})


def _record(done: Exported) -> dict[str, object]:
    return {
        "folder": str(done.folder),
        "images": done.images,
        "bytes": done.sizes,
        "proof": [row for proof in done.proofs for row in proof.to_list()],
        "notes": list(done.notes),
    }


def _print(done: Exported) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for heading in ("graph", "output", "size"):
        table.add_column(heading)
    for heading in ("batch", "images", "worst difference", "least cosine", "answers changed"):
        table.add_column(heading, justify="right")
    for proof in done.proofs:
        for row in proof.rows:
            table.add_row(
                row.part, row.output, row.size, str(row.batch), str(row.images), f"{row.difference:.1e}",
                f"{row.cosine:.6f}", str(row.changed),
            )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    say(f"compared with PyTorch on {done.images}")
    for note in done.notes:
        say(note)
    sizes = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in done.sizes.items())
    say(f"{done.folder}: {sizes}")
