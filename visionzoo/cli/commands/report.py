"""``visionzoo report RUN``"""

from __future__ import annotations

import argparse

from visionzoo.cli.commands.arguments import Subparsers, add_model, the_model
from visionzoo.terminal import say


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="make the page of a run anew",
        description="Write report.html into a run folder: curves, what was run, classes, the confusion matrix and its "
        "images, mistakes, what the probabilities mean, reconstructions, retrievals, masks, and bad samples. One file "
        "that needs no network. A training run writes it by itself. Neither the model nor the data are read.",
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder")
    add_model(parser, "RUN, said in another place", required=False)


def run(args: argparse.Namespace) -> int:
    folder = the_model(args.run, args.model)
    from visionzoo.report import write_report

    say(write_report(folder))
    return 0
