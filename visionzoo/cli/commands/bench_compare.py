"""``visionzoo bench compare RUN1 RUN2``"""

from __future__ import annotations

import argparse
from pathlib import Path

from visionzoo.cli.commands.arguments import Subparsers, add_json, add_out
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.terminal import say, visible_name

#: Classes that are listed at the terminal.
LISTED = 5


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "bench compare",
        help="compare two runs image by image",
        description="Compare what two runs of classify answered for the same held-out images: a paired test, the "
        "classes where they differ, and the pictures on which they disagree. Neither models nor data are read.",
    )
    parser.add_argument("first", metavar="RUN1", help="run folder of train.py classify")
    parser.add_argument("second", metavar="RUN2", help="another, with the same held-out images")
    add_out(parser, "the page, a name that ends in .html")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    check_target("--out", args.out, ".html")
    from visionzoo.report.compare_page import said, write_comparison
    from visionzoo.runs.compare import compare_runs

    found = compare_runs(args.first, args.second)
    if args.json != "-":
        say(f"first   {100 * found.accuracy(0):6.2f} %  {visible_name(args.first)}")
        say(f"second  {100 * found.accuracy(1):6.2f} %  {visible_name(args.second)}")
        say(f"on the {found.images:,} held-out images that both answered")
        say(said(found))
        say(f"only the first is right on {len(found.only(0)):,}, only the second on {len(found.only(1)):,}")
        say("one training of each: what another seed would give is not known")
        for one in found.classes[:LISTED]:
            shares = " and ".join(f"{100 * right / one.images:.1f} %" for right in one.right)
            say(f"  {visible_name(one.name)}: {shares} of {one.images:,}, p = {one.p:.2g} after Holm")
    if args.out is not None:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        path = write_comparison(found, args.out)
        if args.json != "-":
            say(f"written to {path}")
    if args.json is not None:
        emit_json(found.to_dict(), args.json)
    return 0
