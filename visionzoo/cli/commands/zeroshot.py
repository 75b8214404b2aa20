"""``visionzoo zeroshot IMAGE... --labels "cat,dog" --model M``"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionzoo.cli.commands.answers import emit_report
from visionzoo.cli.commands.arguments import (
    CLIP,
    Subparsers,
    add_batch_size,
    add_csv,
    add_device,
    add_json,
    add_labels,
    add_model,
    add_out,
    add_promises,
    add_top,
    add_weights,
)
from visionzoo.cli.commands.output import check_picture, check_target, emit_json
from visionzoo.export.folder import is_exported, read_spec
from visionzoo.terminal import say, visible_name
from visionzoo.text import check_text, nfc, read_text, split_lines

if TYPE_CHECKING:
    from visionzoo.export.predictors import ExportedZeroShot
    from visionzoo.inference.classifier import ImageLabeller
    from visionzoo.inference.score import LabelledScore
    from visionzoo.inference.zero_shot import ZeroShotClassifier

#: A CLIP learned from captions, and knows things better in one.
TEMPLATE = "a photo of a {}."


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "zeroshot",
        help="name what is in images with labels of your own",
        description="Name what is in images with labels that you type, by a CLIP or SigLIP. On labelled data "
        "(a folder of class folders, or --data.path) it prints the accuracy and the confusion matrix instead. Images "
        "that cannot be read are listed, and the exit status is then 1.",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image files, or folders of them (at any depth)")
    add_model(parser, CLIP)
    add_weights(parser)
    add_labels(
        parser,
        "labels with commas between them, or a text file with one on each line (default: those saved with the run; on "
        "labelled data the names of the classes)",
    )
    parser.add_argument(
        "--templates", action="append", metavar="T",
        help="a sentence with {} for the label, none, or a name: imagenet (the 80 of published numbers), "
        "imagenet-simple (7 of them), varied (80 others); may be given several times "
        f"(default: '{TEMPLATE}')",
    )  # fmt: skip
    parser.add_rare("--multi-label", action="store_true", help="score each label by itself")
    parser.add_argument("--unknown", type=float, metavar="P", help="below this probability an image is called unknown")
    parser.add_rare(
        "--calibrate",
        metavar="PATH",
        help="labelled images, as for train.py, that the probabilities are fitted to first",
    )
    add_promises(parser)
    add_top(parser, "answers for each image", 5)
    parser.add_argument(
        "--data.path", dest="path", metavar="PATH", help="labelled data to score, of any kind that train.py takes"
    )
    add_out(parser, "for labelled data: where the confusion matrix is drawn")
    target = parser.add_mutually_exclusive_group()
    add_csv(target)
    add_json(target)
    add_batch_size(parser, 32)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--csv", args.csv, ".csv")
    check_target("--json", args.json, ".json")
    if args.out:
        check_picture("--out", args.out, [], (".png",))
    if bool(args.images) == bool(args.path):
        raise ValueError("give images to name, or labelled data to score by --data.path")
    given = None if args.labels is None else typed_labels(args.labels)
    if (args.sets, args.unknown_rate) != (None, None) and not args.calibrate:
        raise ValueError("--sets and --unknown-rate need labelled images of the same kind: --calibrate PATH")
    if args.path:
        if args.sets is not None or args.unknown_rate is not None:
            raise ValueError("--sets and --unknown-rate are for images to name; leave --data.path out")
        if args.csv or args.multi_label:
            raise ValueError("with --data.path use --json; --csv and --multi-label are for images without labels")
        return _score(args, args.path, given)
    labels = given or _saved_labels(args.model) or None
    folders = _class_folders(args.images, labels)
    promised = {"sets": args.sets, "unknown_rate": args.unknown_rate}
    rows = args.csv or args.multi_label or any(value is not None for value in promised.values())
    if folders and given is None and not rows:
        return _score(args, args.images[0], labels)
    if args.out and not folders:
        raise ValueError("--out draws the confusion matrix of labelled data; it needs --data.path, or class folders")
    if not labels and not folders:
        raise ValueError('say what may be in the images: --labels "cat,dog", or a file with one label on each line')
    classifier = _classifier(args, labels or list(folders))
    say(f"templates: {classifier.templates_name}", file=sys.stderr)
    report = classifier.report(args.images, top_k=args.top, batch_size=args.batch_size, **promised)
    status = emit_report(report, csv=args.csv, json=args.json, more={"templates": classifier.templates_name})
    if folders:
        from visionzoo.inference.score import score_report

        rows_to_terminal = "-" in (args.csv, args.json) or not (args.csv or args.json or sys.stdout.isatty())
        found = score_report(report, folders, classifier.labels, classifier.templates_name)
        say(found.to_text(), file=sys.stderr if rows_to_terminal else sys.stdout)
        _draw(args, found, classifier.name, args.images[0])
    return status


def _exported(args: argparse.Namespace) -> ExportedZeroShot:
    """An exported folder, whose labels and sentences are in its graph."""
    from visionzoo.export.predictors import ExportedZeroShot, load_exported

    if (kind := read_spec(args.model)["kind"]) != "zero-shot":
        towers = "two towers without labels; give the run, or " if kind == "clip" else "no zero-shot classifier; "
        raise ValueError(f"{args.model} holds {towers}export a CLIP with its labels: visionzoo export RUN --labels a,b")
    fixed = {"--labels": args.labels, "--templates": args.templates, "--weights": args.weights}
    if said := [option for option, value in fixed.items() if value]:
        raise ValueError(f"{args.model} was exported with its labels and sentences; leave {', '.join(said)} out")
    classifier = load_exported(args.model)
    assert isinstance(classifier, ExportedZeroShot)
    if args.multi_label != classifier.multi_label and args.multi_label:
        raise ValueError(f"{args.model} was exported with one label for each image; leave --multi-label out")
    if args.unknown is not None:
        classifier.unknown = args.unknown
    return classifier


def _class_folders(images: list[str], labels: Sequence[str] | None) -> dict[str, str]:
    """Label -> folder of a folder of class folders; empty for anything else, or where they are not among the labels."""
    if len(images) != 1 or not os.path.isdir(images[0]):
        return {}
    from visionzoo.data.sources.folder import class_folders
    from visionzoo.data.sources.readable_names import readable_names

    found = class_folders(images[0])
    folders = dict(zip(readable_names(tuple(found)), found.values(), strict=True))
    if not labels:
        return folders
    given = {label.strip().casefold() for label in labels}
    return folders if {name.casefold() for name in folders} <= given else {}


def _saved_labels(model: str) -> list[str] | None:
    """Those of a run or an exported folder, before the model is loaded, which takes a while."""
    from visionzoo.models.bundle import CONFIG_FILE, read_config
    from visionzoo.weights.preprocessing import read_json

    if is_exported(model):
        return list(read_spec(model).get("labels", ()))
    if "schema_version" not in read_json(Path(model) / CONFIG_FILE):
        return None
    config = read_config(model)
    return list(config.labels) if config.task == "clip" else None


def _score(args: argparse.Namespace, path: str, given: Sequence[str] | None) -> int:
    from visionzoo.inference.score import class_labels, open_labelled, score

    source = open_labelled(path)
    if is_exported(args.model):
        raise ValueError(
            f"{args.model} is exported; score the run that it was made of, or name images without --data.path"
        )
    classifier = _classifier(args, class_labels(source) if given is None else given)
    found = score(classifier, source, batch_size=args.batch_size, unknown=args.unknown)
    if args.json != "-":
        say(found.to_text())
    if args.json:
        emit_json(found.to_dict(), args.json)
    _draw(args, found, classifier.name, path)
    for image in found.unreadable:
        say(visible_name(f"cannot read {image.name}: {image.reason}"), file=sys.stderr)
    return 1 if found.unreadable else 0


def _draw(args: argparse.Namespace, found: LabelledScore, name: str, path: str) -> None:
    if args.out:
        from visionzoo.viz import confusion_matrix

        confusion_matrix(found.matrix, found.labels, args.out, title=f"{name} on {path}")
        say(f"written to {args.out}", file=sys.stderr)


def _classifier(args: argparse.Namespace, labels: Sequence[str] | None) -> ZeroShotClassifier | ExportedZeroShot:
    from visionzoo.cache import cache_folder
    from visionzoo.inference.zero_shot import ZeroShotClassifier

    if is_exported(args.model):
        exported = _exported(args)
        _calibrate(args, exported)
        return exported
    classifier = ZeroShotClassifier.load(
        args.model,
        labels,
        named_templates(args.templates),
        multi_label=args.multi_label,
        unknown=args.unknown,
        cache_dir=cache_folder("texts"),
        device=args.device,
        weights=args.weights,
    )
    _calibrate(args, classifier)
    return classifier


def _calibrate(args: argparse.Namespace, classifier: ImageLabeller) -> None:
    """Fit the probabilities where that was asked for."""
    if not args.calibrate:
        return
    from visionzoo.inference.calibrate import calibrate_on

    found = calibrate_on(classifier, args.calibrate, batch_size=args.batch_size)
    say(found.to_text(), file=sys.stderr)
    for image in found.unreadable:
        say(visible_name(f"left out {image.name}: {image.reason}"), file=sys.stderr)


def typed_labels(given: str) -> list[str]:
    """Labels as they were typed, or from a file; what is empty between two commas is for the classifier to refuse."""
    if os.path.isfile(given):
        return [nfc(line.strip()) for line in split_lines(read_text(given)) if line.strip()]
    return [nfc(label) for label in check_text(given, "--labels").split(",")]


def named_templates(given: list[str] | None) -> str | list[str] | None:
    """What a classifier takes for what was given as ``--templates``."""
    if given is None:
        return TEMPLATE
    if len(given) > 1:
        return given
    return None if given[0] == "none" else given[0]
