"""``visionzoo calibrate RUN --data.path PATH``"""

from __future__ import annotations

import argparse
import sys

from visionzoo.cli.commands.arguments import Subparsers, add_batch_size, add_device, add_json, add_model, the_model
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.terminal import say, visible_name


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help="have a run's probabilities mean what they say",
        description="Fit the temperature of a trained classifier, and what `predict --sets` and `--unknown-rate` need, "
        "to labelled images that it was not trained on, and write it into the run's config.json. A training run does "
        "so by itself with its held-out images. Images that cannot be read are listed, and the exit status is then 1.",
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder of a classifier")
    add_model(parser, "RUN, said in another place", required=False)
    parser.add_argument(
        "--data.path", dest="path", required=True, metavar="PATH", help="labelled data, as for train.py"
    )
    add_batch_size(parser, 32)
    add_json(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    model = the_model(args.run, args.model)
    from visionzoo.inference.calibrate import calibrate_run

    found = calibrate_run(model, args.path, batch_size=args.batch_size, device=args.device)
    if args.json != "-":
        say(found.to_text())
    if args.json is not None:
        emit_json(found.to_dict(), args.json)
    for image in found.unreadable:
        say(visible_name(f"left out {image.name}: {image.reason}"), file=sys.stderr)
    return 1 if found.unreadable else 0
