"""``visionzoo models [PATTERN]``"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from visionzoo.cli.commands.output import emit_json

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

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
    from rich.console import Console

    # Away from a terminal rich would fold the table to 80 columns, which no program can read back.
    console = Console() if sys.stdout.isatty() else Console(width=240)
    wide = _wide_table(infos)
    fits = console.measure(wide, options=console.options.update(width=1000)).maximum <= console.width
    console.print(wide if fits or not infos else _narrow_text(infos))


def _numbers(info: BackboneInfo) -> tuple[str, str, str]:
    height, width = info.image_size
    size = str(height) if height == width else f"{height}x{width}"
    return f"{info.params / 1e6:.1f}", f"{info.gmacs:.2f}", size


def _wide_table(infos: list[BackboneInfo]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("name", "family", box=SIMPLE_HEAD)
    for heading in ("params M", "GMACs", "size"):
        table.add_column(heading, justify="right")
    for heading in ("capabilities", "weights", "licence of weights"):
        table.add_column(heading)
    for info in infos:
        capabilities = " ".join(sorted(info.capabilities))
        table.add_row(info.name, info.family, *_numbers(info), capabilities, info.weights or "-", info.licence)
    return table


def _narrow_text(infos: list[BackboneInfo]) -> Text:
    """The same for 80 columns: what is long goes below its name."""
    from rich.text import Text

    text = Text()
    longest = max(len(info.name) for info in infos)
    for info in infos:
        params, gmacs, size = _numbers(info)
        text.append(f"{info.name:<{longest}}", style="bold")
        text.append(f"  {params:>6} M  {gmacs:>6} GMACs  {size:>7}\n")
        weights = f"{info.weights}, {info.licence}" if info.weights else "no published weights"
        text.append(f"    {info.family}: {' '.join(sorted(info.capabilities))}\n    {weights}\n", style="dim")
    return text
