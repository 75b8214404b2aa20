"""``visionzoo models [PATTERN]``"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from visionzoo.cli.commands.output import emit_json

if TYPE_CHECKING:
    from visionzoo.types import BackboneInfo

#: timm models are described by building them without memory, a fifth of a second each: beyond this, names must do.
DESCRIBE_UP_TO = 60


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "models",
        help="list backbones",
        description="List backbones: parameters and multiply-adds without a head, at the size shown.",
    )
    parser.add_argument(
        "pattern", metavar="PATTERN", nargs="?", default="*", help="for example 'vit_*' or 'timm/resnet*'"
    )
    parser.add_argument("--capability", metavar="C", help="only backbones that declare it, for example pyramid")
    parser.add_argument("--timm", action="store_true", help="list timm's models, as if PATTERN began with timm/")
    parser.add_argument("--json", action="store_true", help="print JSON, with paper and preprocessing")


def run(args: argparse.Namespace) -> int:
    from visionzoo.backbones import backbone_info, list_backbones
    from visionzoo.inference.progress import track
    from visionzoo.types import CAPABILITIES

    if args.capability is not None and args.capability not in CAPABILITIES:
        raise ValueError(f"unknown capability {args.capability!r}; known are {', '.join(CAPABILITIES)}")
    pattern = args.pattern
    if args.timm and not pattern.startswith("timm/"):
        pattern = f"timm/{pattern}"
    names = list_backbones(pattern)
    if not names:
        backbone_info(pattern)  # a name without wildcards that is nearly right gets its suggestion from here
        raise ValueError(f"no backbone matches {pattern!r}; `visionzoo models` lists all, --timm lists timm's")
    if pattern.startswith("timm/") and len(names) > DESCRIBE_UP_TO and not args.json and args.capability is None:
        print("\n".join(names))
        print(f"{len(names)} models; a pattern with at most {DESCRIBE_UP_TO} shows more of each", file=sys.stderr)
        return 0
    infos: list[BackboneInfo] = []
    unusable: list[str] = []
    for name in track(names, len(names), "backbones"):
        try:
            info = backbone_info(name)
        except ValueError as error:  # some timm models have no pooled features; the message says so
            unusable.append(str(error))
            continue
        if args.capability is None or args.capability in info.capabilities:
            infos.append(info)
    if args.json:
        emit_json([_record(info) for info in infos], "-")
    else:
        _print_table(infos)
    for line in unusable:
        print(line, file=sys.stderr)
    return 0


def _record(info: BackboneInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "family": info.family,
        "params": info.params,
        "gmacs": round(info.gmacs, 4),
        "image_size": list(info.image_size),
        "capabilities": sorted(info.capabilities),
        "pooled_dim": info.pooled_dim,
        "weights": info.weights,
        "licence": info.licence,
        "paper": info.paper,
        "preprocess": info.preprocess.to_dict(),
    }


def _print_table(infos: list[BackboneInfo]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("family")
    for heading in ("params M", "GMACs", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("capabilities", overflow="fold")
    table.add_column("weights", overflow="fold")
    table.add_column("licence of weights", overflow="fold")
    for info in infos:
        height, width = info.image_size
        table.add_row(
            info.name,
            info.family,
            f"{info.params / 1e6:.1f}",
            f"{info.gmacs:.2f}",
            str(height) if height == width else f"{height}x{width}",
            " ".join(sorted(info.capabilities)),
            info.weights or "-",
            info.licence,
        )
    # Away from a terminal rich would fold the table to 80 columns, which no program can read back.
    console = Console() if sys.stdout.isatty() else Console(width=240)
    console.print(table)
