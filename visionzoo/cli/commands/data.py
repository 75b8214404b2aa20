"""``visionzoo data check PATH`` and ``visionzoo data doctor PATH``"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionzoo.cli.commands.arguments import (
    Subparsers,
    add_batch_size,
    add_device,
    add_image_size,
    add_json,
    add_model,
    add_weights,
    whole,
)
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.terminal import say


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("data", help="look at a data set", description="Look at a data set.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="read a data set and say what is in it",
        description="Read every image of a data set, with its captions or masks, as the task would that it is for, and "
        "print counts, sizes, modes, what is unreadable or passed over, and duplicates across splits.",
    )
    check.add_argument("path", metavar="PATH", help="anything that --data.path takes")
    add_json(check)
    _add_doctor(actions)


def _add_doctor(actions: Subparsers) -> None:
    doctor = actions.add_parser(
        "doctor",
        help="find wrong labels, twins and leaks, odd images, and what to label next",
        description="Look at a data set by a frozen model: wrong labels, the same picture twice or in several splits, "
        "odd images, weak slices, captions that do not fit, faults of masks. Writes a page, the findings, and the data "
        "set without them, which fit reads. What was computed is kept: a look that is broken off goes on.",
    )
    doctor.add_argument("path", metavar="PATH", help="anything that --data.path takes")
    add_model(doctor, "run folder, backbone's name with --weights, or CLIP (default: that of fit)", required=False)
    add_weights(doctor)
    add_image_size(doctor)
    doctor.add_argument("--label-next", type=whole(1), default=0, metavar="N", help="choose N images to label next")
    doctor.add_argument("--unlabelled", metavar="FOLDER", help="choose them from here (default: from PATH)")
    doctor.add_argument(
        "--choice", default="badge", choices=("badge", "coreset", "random"), help="how they are chosen (default: badge)"
    )
    doctor.add_argument("--against", metavar="FOLDER", help="images that arrived later: have they drifted?")
    doctor.add_argument("--out", metavar="FOLDER", help="for the page and the rest (default: runs/doctor-<data>)")
    doctor.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")
    doctor.add_argument("--cache", metavar="FOLDER", help="where features are kept (default: the user's cache)")
    add_batch_size(doctor, 32)
    add_json(doctor)
    add_device(doctor)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    return _doctor(args) if args.action == "doctor" else _check(args)


def _doctor(args: argparse.Namespace) -> int:
    from visionzoo.curation.doctor import PAGE, data_doctor

    out = Path(args.out) if args.out else _free_folder(args.path)
    found = data_doctor(
        args.path,
        model=args.model,
        weights=args.weights,
        image_size=args.image_size,
        label_next=args.label_next,
        unlabelled=args.unlabelled,
        choice=args.choice,
        against=args.against,
        out=out,
        batch_size=args.batch_size,
        seed=args.seed,
        cache=args.cache,
        device=args.device,
    )
    if args.json:
        emit_json(found.to_dict(), args.json)
    if args.json != "-":
        say(found.to_text())
        say()
        say(f"page: {out / PAGE}")
    return 1 if found.of("unreadable") else 0


def _free_folder(path: str) -> Path:
    """``runs/doctor-<data>``, with a number where that is taken. It is made when there is something to write."""
    name = Path(path.rstrip("/\\")).name.split(".")[0] or "data"
    out, number = Path("runs", f"doctor-{name}"), 1
    while out.exists():
        number += 1
        out = Path("runs", f"doctor-{name}-{number}")
    return out


def _check(args: argparse.Namespace) -> int:
    from visionzoo.data.check import check_data

    report = check_data(args.path, progress=sys.stderr.isatty())
    if args.json:
        emit_json(report.to_dict(), args.json)
    if args.json != "-":
        say(report.to_text())
    return 0
