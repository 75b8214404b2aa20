"""``visionzoo predict RUN IMAGE...``"""

from __future__ import annotations

import argparse

from visionzoo.cli.commands.answers import emit_report
from visionzoo.cli.commands.output import check_target


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
    return emit_report(report, csv=args.csv, json=args.json)
