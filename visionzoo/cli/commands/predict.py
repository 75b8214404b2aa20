"""``visionzoo predict RUN IMAGE...``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from visionzoo.cli.commands.answers import emit_report
from visionzoo.cli.commands.arguments import (
    Subparsers,
    add_batch_size,
    add_csv,
    add_device,
    add_json,
    add_model,
    add_promises,
    add_top,
)
from visionzoo.cli.commands.output import check_target
from visionzoo.cli.suggest import UsageError
from visionzoo.export.folder import is_exported

if TYPE_CHECKING:
    from visionzoo.inference.classifier import ImageLabeller


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="name what is in images",
        description="Name what is in images with a trained classifier. On a terminal the answer is a table, "
        "elsewhere CSV. Probabilities are calibrated where the run is (see `visionzoo calibrate`). Images that cannot "
        "be read are listed, and the exit status is then 1.",
    )
    parser.add_argument(
        "run", metavar="RUN", nargs="?",
        help="run folder, folder with model.safetensors + config.json, exported folder, or timm:NAME",
    )  # fmt: skip
    parser.add_argument(
        "images", metavar="IMAGE", nargs="*", help="image files, or folders of them (searched at any depth)"
    )
    add_model(parser, "RUN, said in another place", required=False)
    add_top(parser, "answers for each image", 5)
    add_promises(parser)
    target = parser.add_mutually_exclusive_group()
    add_csv(target)
    add_json(target)
    add_batch_size(parser, 32)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--csv", args.csv, ".csv")
    check_target("--json", args.json, ".json")
    given = [args.run, *args.images] if args.run is not None else []
    model, images = (args.model, given) if args.model is not None else (args.run, args.images)
    if model is None or not images:
        raise UsageError("give a run and images: visionzoo predict RUN IMAGE...")
    if not _is_model(model) and any(map(_is_model, images)):
        raise UsageError(f"the arguments are the other way round: visionzoo predict {images[-1]} {model}")
    classifier = _load(model, args.device)
    promised = {"sets": args.sets, "unknown_rate": args.unknown_rate}
    report = classifier.report(images, top_k=args.top, batch_size=args.batch_size, **promised)
    return emit_report(report, csv=args.csv, json=args.json)


def _load(model: str, device: str | None) -> ImageLabeller:
    """A run, or an exported classifier, which runs on the CPU."""
    if not is_exported(model):
        from visionzoo.inference.classifier import ImageClassifier

        return ImageClassifier.load(model, device=device)
    from visionzoo.export.predictors import ExportedClassifier, load_exported

    loaded = load_exported(model)
    if not isinstance(loaded, ExportedClassifier):
        raise ValueError(f"{model} is an exported {type(loaded).__name__}, which names nothing")
    return loaded


def _is_model(name: str) -> bool:
    from visionzoo.runs.folder import RunFolder

    return name.startswith("timm:") or RunFolder(name).is_run() or is_exported(name)
