"""``visionzoo probe RUN --data.path PATH``"""

from __future__ import annotations

import argparse
import sys

from visionzoo.cli.commands.arguments import (
    Subparsers,
    add_batch_size,
    add_device,
    add_image_size,
    add_json,
    add_model,
    add_weights,
    the_model,
    whole,
)
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.terminal import say, visible_name


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "probe",
        help="score frozen features by k-NN and a linear classifier",
        description="Compute the features of a frozen backbone once (they are kept on the disk) and report the "
        "accuracy of a k-NN and of a linear classifier on them. Images that cannot be read are listed, and the exit "
        "status is then 1.",
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder of any task, or the name of a backbone")
    add_model(parser, "RUN, said in another place", required=False)
    parser.add_argument(
        "--data.path", dest="path", required=True, metavar="PATH", help="labelled data, as for train.py"
    )
    parser.add_argument("--data.val_path", dest="val_path", metavar="PATH", help="held-out images of their own")
    parser.add_argument("--data.val_fraction", dest="val_fraction", type=float, help="share to hold out")
    parser.add_argument("--data.train_limit", dest="train_limit", type=_limit, help="label budget: a number or a share")
    parser.add_rare("--data.seed", dest="seed", type=int, default=0, help="of the hold-out and the budget")
    add_weights(parser)
    add_image_size(parser)
    parser.add_rare(
        "--features", default="auto", choices=("auto", "pooled", "mean"),
        help="what a classifier reads, or the mean over the grid (default: mean after masked pretraining, else pooled)",
    )  # fmt: skip
    parser.add_rare("--k", type=whole(1), default=20, help="neighbours (default: 20)")
    add_batch_size(parser, 64)
    parser.add_rare("--cache", metavar="FOLDER", help="where features are kept (default: the user's cache)")
    add_json(parser)
    add_device(parser)


def _limit(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    args.model = the_model(args.run, args.model)
    from visionzoo.inference.probe import probe

    report = probe(
        args.model,
        args.path,
        val_path=args.val_path,
        val_fraction=args.val_fraction,
        train_limit=args.train_limit,
        seed=args.seed,
        weights=args.weights,
        image_size=args.image_size,
        features=args.features,
        neighbours=args.k,
        batch_size=args.batch_size,
        cache=args.cache,
        device=args.device,
    )
    if args.json != "-":
        say(report.to_text())
    if args.json is not None:
        emit_json(report.to_dict(), args.json)
    for image in report.unreadable:
        say(visible_name(f"left out {image.name}: {image.reason}"), file=sys.stderr)
    return 1 if report.unreadable else 0
