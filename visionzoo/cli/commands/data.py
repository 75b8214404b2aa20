"""``visionzoo data check PATH``"""

from __future__ import annotations

import argparse
import sys

from visionzoo.cli.commands.arguments import add_json
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.terminal import say


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    from visionzoo.data.check import check_data

    report = check_data(args.path, progress=sys.stderr.isatty())
    if args.json:
        emit_json(report.to_dict(), args.json)
    if args.json != "-":
        say(report.to_text())
    return 0
