"""``visionzoo models [PATTERN]``"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from typing import TYPE_CHECKING, Any

from visionzoo.cli.commands.arguments import Subparsers, add_json
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.cli.suggest import suggestion
from visionzoo.embedded import embedded_names, read_card
from visionzoo.facts import backbone_facts
from visionzoo.terminal import say

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from visionzoo.types import BackboneInfo

#: timm models are described by building them without memory, a fifth of a second each: beyond this, names must do.
DESCRIBE_UP_TO = 60


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "models",
        help="list backbones",
        description="List backbones: parameters and multiply-adds without a head, at the size shown.",
    )
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        default="*",
        help="part of a name, or a pattern: swin, 'vit_*', 'timm/resnet*'",
    )
    parser.add_argument("--capability", metavar="C", help="only backbones that declare it, for example pyramid")
    parser.add_argument("--timm", action="store_true", help="list timm's models, as if PATTERN began with timm/")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    pattern = f"timm/{args.pattern}" if args.timm and not args.pattern.startswith("timm/") else args.pattern
    if args.capability is not None:
        _check_capability(args.capability)
    unusable: list[str] = []
    if pattern.startswith("timm/"):
        from visionzoo.backbones import list_backbones

        names = _matching(pattern, list_backbones("timm/*"))
        if len(names) > DESCRIBE_UP_TO and not args.json and args.capability is None:
            say("\n".join(names))
            say(f"{len(names)} models; a pattern with at most {DESCRIBE_UP_TO} shows more of each", file=sys.stderr)
            return 0
        infos, unusable = _describe(names)
    else:
        facts = backbone_facts() | _other_peoples()
        of_package = pattern.startswith("embedded")
        infos = [] if of_package else [facts[name] for name in _matching(pattern, list(facts))]
    infos = [i for i in infos if args.capability is None or args.capability in i.capabilities]
    if args.json:
        emit_json([_record(info) for info in infos], args.json)
    if args.json != "-":
        if infos:
            _print_table(infos)
        _print_embedded(pattern)
    for line in unusable:
        say(line, file=sys.stderr)
    return 0


def _print_embedded(pattern: str) -> None:
    """What comes with the package, where all is listed or it is asked for."""
    if pattern not in ("*", "embedded") and not pattern.startswith("embedded:"):
        return
    found = [name for name in embedded_names() if pattern in ("*", "embedded", f"embedded:{name}")]
    if not found:
        raise ValueError(f"no embedded model is called {pattern!r}; there are {', '.join(embedded_names())}")
    say("models that come with the package (visionzoo demo, weights='embedded'):")
    for name in found:
        card = read_card(name)
        say(f"  embedded:{name}  {card['task']}, {card['parameters']} parameters, {card['input']}; {card['licence']}")
        say(f"      {card['data']}\n      {card['reached']}")


def _other_peoples() -> dict[str, BackboneInfo]:
    """Backbones of modules that have been imported; without such modules torch is not needed."""
    if "visionzoo.registry" not in sys.modules:
        return {}
    from visionzoo.backbones import backbone_info, list_backbones

    return {name: backbone_info(name) for name in list_backbones() if name not in backbone_facts()}


def _check_capability(name: str) -> None:
    from visionzoo.types import CAPABILITIES

    if name not in CAPABILITIES:
        hint = suggestion(name, CAPABILITIES, otherwise=f"known are {', '.join(CAPABILITIES)}")
        raise ValueError(f"unknown capability {name!r}; {hint}")


def _matching(pattern: str, names: list[str]) -> list[str]:
    """The name itself, or what fits a pattern with wildcards, or else what contains the word.

    Raises:
        ValueError: if there is none, with near names.
    """
    if pattern in names:
        return [pattern]
    word = pattern.removeprefix("timm/")
    found = fnmatch.filter(names, pattern) if any(c in pattern for c in "*?[") else [n for n in names if word in n]
    if not found:
        words = {part for name in names for part in name.split("_")}
        otherwise = "`visionzoo models` lists all, --timm lists timm's"
        hint = suggestion(pattern, [*names, *sorted(words)], count=3, otherwise=otherwise)
        raise ValueError(f"no backbone matches {pattern!r}; {hint}")
    return found


def _describe(names: list[str]) -> tuple[list[BackboneInfo], list[str]]:
    """What is known of timm models, and one line for each that has no pooled features."""
    from visionzoo.backbones import backbone_info
    from visionzoo.inference.progress import track

    infos: list[BackboneInfo] = []
    unusable: list[str] = []
    for name in track(names, len(names), "backbones"):
        try:
            infos.append(backbone_info(name))
        except ValueError as error:
            unusable.append(str(error))
    return infos, unusable


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
