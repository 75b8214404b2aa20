"""``visionzoo zeroshot IMAGE... --labels "cat,dog" --model M``"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionzoo.cli.commands.answers import emit_report
from visionzoo.cli.commands.output import check_picture, check_target, emit_json

if TYPE_CHECKING:
    from visionzoo.inference.zero_shot import ZeroShotClassifier

#: A CLIP learned from captions, and knows things better in one.
TEMPLATE = "a photo of a {}."


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "zeroshot",
        help="name what is in images with labels of your own",
        description="Name what is in images with labels that you type, by a CLIP or SigLIP. On labelled data "
        "(--data.path) it prints the accuracy and the confusion matrix instead. Images that cannot be read are listed, "
        "and the exit status is then 1.",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image files, or folders of them (at any depth)")
    parser.add_argument(
        "--model", required=True, metavar="M",
        help="run folder of a CLIP, folder with weights of open_clip or transformers, or hf-hub:org/name",
    )  # fmt: skip
    parser.add_argument(
        "--labels", metavar="A,B,...",
        help="labels with commas between them, or a text file with one on each line (default: those saved with the "
        "run; on labelled data the names of the classes)",
    )  # fmt: skip
    parser.add_argument(
        "--templates", action="append", metavar="T",
        help="a sentence with {} for the label, none, or a name: imagenet (the 80 of published numbers), "
        "imagenet-simple (7 of them), varied (80 others); may be given several times "
        f"(default: '{TEMPLATE}')",
    )  # fmt: skip
    parser.add_argument("--multi-label", action="store_true", help="score each label by itself")
    parser.add_argument("--unknown", type=float, metavar="P", help="below this probability an image is called unknown")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="answers for each image (default: 5)")
    parser.add_argument(
        "--data.path", dest="path", metavar="PATH", help="labelled data to score, of any kind that train.py takes"
    )
    parser.add_argument("--out", metavar="PNG", help="with --data.path: where the confusion matrix is drawn")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--csv", nargs="?", const="-", metavar="FILE", help="write CSV, one row for each image")
    target.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON; without FILE to the terminal")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> int:
    check_target("--csv", args.csv, ".csv")
    check_target("--json", args.json, ".json")
    if bool(args.images) == bool(args.path):
        raise ValueError("give images to name, or labelled data to score by --data.path")
    if args.path:
        return _score(args)
    if args.out:
        raise ValueError("--out draws the confusion matrix of labelled data; it needs --data.path")
    classifier = _classifier(args, None)
    print(f"templates: {classifier.templates_name}", file=sys.stderr)
    report = classifier.report(args.images, top_k=args.top, batch_size=args.batch_size)
    return emit_report(report, csv=args.csv, json=args.json, more={"templates": classifier.templates_name})


def _score(args: argparse.Namespace) -> int:
    if args.csv or args.multi_label:
        raise ValueError("with --data.path use --json; --csv and --multi-label are for images without labels")
    if args.out:
        check_picture("--out", args.out, [], (".png",))
    from visionzoo.inference.score import class_labels, open_labelled, score

    source = open_labelled(args.path)
    classifier = _classifier(args, class_labels(source))
    found = score(classifier, source, batch_size=args.batch_size, unknown=args.unknown)
    if args.json != "-":
        print(found.to_text())
    if args.json:
        emit_json(found.to_dict(), args.json)
    if args.out:
        from visionzoo.viz import confusion_matrix

        confusion_matrix(found.matrix, found.labels, args.out, title=f"{classifier.name} on {args.path}")
        print(f"written to {args.out}", file=sys.stderr)
    for image in found.unreadable:
        print(f"cannot read {image.name}: {image.reason}", file=sys.stderr)
    return 1 if found.unreadable else 0


def _classifier(args: argparse.Namespace, default: Sequence[str] | None) -> ZeroShotClassifier:
    from visionzoo.inference.zero_shot import ZeroShotClassifier
    from visionzoo.runs.cache import cache_folder

    return ZeroShotClassifier.load(
        args.model,
        default if args.labels is None else _labels(args.labels),
        _templates(args.templates),
        multi_label=args.multi_label,
        unknown=args.unknown,
        cache_dir=cache_folder("texts"),
        device=args.device,
    )


def _labels(given: str) -> list[str]:
    """Labels as they were typed, or from a file; what is empty between two commas is for the classifier to refuse."""
    if os.path.isfile(given):
        text = Path(given).read_text(encoding="utf-8")
        return [line.strip() for line in text.splitlines() if line.strip()]
    return given.split(",")


def _templates(given: list[str] | None) -> str | list[str] | None:
    if given is None:
        return TEMPLATE
    if len(given) > 1:
        return given
    return None if given[0] == "none" else given[0]
