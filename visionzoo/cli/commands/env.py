"""``visionzoo env``"""

from __future__ import annotations

import argparse
from typing import Any

from visionzoo.cli.commands.arguments import Subparsers, add_json
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.terminal import say


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "env",
        help="print versions and machine, for a report of a fault",
        description="Print versions, machine, processor features, GPUs and what is installed: paste it into an issue.",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    from visionzoo.runs.environment import describe_environment

    found = describe_environment()
    if args.json:
        emit_json(found, args.json)
    if args.json != "-":
        say("\n".join(_lines(found)))
    return 0


def _lines(found: dict[str, Any], indent: str = "") -> list[str]:
    """YAML to the eye: nested names are indented, lists are on one line."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | dict) else value
            lines.append(f"{indent}{name}: {'none' if shown in ('', None) else shown}")
    return lines
