"""``visionzoo cache [list|clear] [KIND...]``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime
from typing import Any

from visionzoo.cache import KINDS, LIMIT, Held, cache_folder, clear, held
from visionzoo.cli.commands.arguments import Subparsers, add_json
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.cli.suggest import UsageError, suggestion
from visionzoo.limits import in_units
from visionzoo.terminal import say


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "cache",
        help="list or clear what is kept between runs",
        description="List what is kept between runs because it is slow to compute, or clear it; it is computed again "
        f"when it is wanted. Above {LIMIT.variable} ({in_units(LIMIT.default)} by default) what was used longest ago "
        "goes by itself.",
    )
    parser.add_argument("action", metavar="ACTION", nargs="?", default="list", help="list (the default) or clear")
    parser.add_argument("kinds", metavar="KIND", nargs="*", help=f"{', '.join(KINDS)} (default: all)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    for word, known in ((args.action, ("list", "clear")), *((kind, KINDS) for kind in args.kinds)):
        if word not in known:
            hint = suggestion(word, known, otherwise=f"known are {', '.join(known)}")
            raise UsageError(f"visionzoo cache does not know {word!r}; {hint}")
    clears = args.action == "clear"
    found = [clear(kind) if clears else held(kind) for kind in dict.fromkeys(args.kinds or KINDS)]
    if args.json:
        emit_json({"removed" if clears else "held": [_record(one) for one in found], "limit": LIMIT.most}, args.json)
    if args.json != "-":
        say(_removed(found) if clears else _table(found))
    return 0


def _record(one: Held) -> dict[str, Any]:
    return {**asdict(one), "folder": str(one.folder), "last_used": _time(one, "seconds")}


def _time(one: Held, precision: str) -> str | None:
    if one.last_used is None:
        return None
    return datetime.fromtimestamp(one.last_used).astimezone().isoformat(timespec=precision)


def _removed(found: list[Held]) -> str:
    entries, size = sum(one.entries for one in found), sum(one.bytes for one in found)
    what = "1 entry" if entries == 1 else f"{entries:,} entries"
    return f"removed {what}, {in_units(size)}: {', '.join(one.kind for one in found)}"


def _table(found: list[Held]) -> str:
    lines = [f"{'kind':<10}  {'entries':>9}  {'size':>13}  {'last used':<16}  what"]
    for one in found:
        used = (_time(one, "minutes") or "-")[:16].replace("T", " ")
        lines.append(f"{one.kind:<10}  {one.entries:>9,}  {in_units(one.bytes):>13}  {used:<16}  {KINDS[one.kind]}")
    total = in_units(sum(one.bytes for one in found))
    return "\n".join([*lines, f"{total} of at most {in_units(LIMIT.most)} ({LIMIT.variable}) in {cache_folder('')}"])
