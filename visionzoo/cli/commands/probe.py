"""``visionzoo probe RUN --data.path PATH``"""

from __future__ import annotations

import argparse
import sys

from visionzoo.cli.commands.output import check_target, emit_json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "probe",
        help="score frozen features by k-NN and a linear classifier",
        description="Compute the features of a frozen backbone once (they are kept on the disk) and report the "
        "accuracy of a k-NN and of a linear classifier on them. Images that cannot be read are listed, and the exit "
        "status is then 1.",
    )
    parser.add_argument("model", metavar="RUN", help="run folder of any task, or the name of a backbone")
    parser.add_argument(
        "--data.path", dest="path", required=True, metavar="PATH", help="labelled data, as for train.py"
    )
    parser.add_argument("--data.val_path", dest="val_path", metavar="PATH", help="held-out images of their own")
    parser.add_argument("--data.val_fraction", dest="val_fraction", type=float, help="share to hold out")
    parser.add_argument("--data.train_limit", dest="train_limit", type=_limit, help="label budget: a number or a share")
    parser.add_argument("--data.seed", dest="seed", type=int, default=0, help="of the hold-out and the budget")
    parser.add_argument("--weights", help="for a backbone: file, folder, hf-hub:org/name, timm:tag or random")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="for a backbone (default: its own)")
    parser.add_argument(
        "--features", default="auto", choices=("auto", "pooled", "mean"),
        help="what a classifier reads, or the mean over the grid (default: mean after masked pretraining, else pooled)",
    )  # fmt: skip
    parser.add_argument("--k", type=int, default=20, help="neighbours (default: 20)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument("--cache", metavar="FOLDER", help="where features are kept (default: the user's cache)")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON (default: to stdout)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


def _limit(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
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
        print(report.to_text())
    if args.json is not None:
        emit_json(report.to_dict(), args.json)
    for image in report.unreadable:
        print(f"left out {image.name}: {image.reason}", file=sys.stderr)
    return 1 if report.unreadable else 0
