"""``visionzoo demo [FOLDER]``"""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from importlib.util import find_spec
from typing import Any

from visionzoo.cli.commands.arguments import CLIP, Subparsers, add_device, whole
from visionzoo.terminal import say

EXTRA = ("fastapi", "uvicorn", "prometheus_client")


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the models in a browser, and for other programs",
        description="Open a page that segments by clicks, names pictures and searches a folder by words, with the "
        "models that come with the package or with yours; annotate a folder of pictures. The same server answers "
        "programs (/docs). It listens on this machine alone unless it is told otherwise.",
    )
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="pictures to annotate and search (default: ours)")
    parser.add_argument("--classify", default="embedded", metavar="RUN", help="run of a classifier, or an export of it")
    parser.add_argument("--clip", default="embedded", metavar="RUN", help=f"{CLIP.partition(', or')[0]}, or an export")
    parser.add_argument("--segment", default="embedded", metavar="RUN", help="run of a SAM, an export of it, or vit_b")
    parser.add_argument("--weights", metavar="W", help="of --segment vit_b: file, folder or hf-hub:org/name")
    parser.add_argument("--out", metavar="FILE", help="annotations (default: instances_train.json in FOLDER)")
    parser.add_argument(
        "--first", metavar="FILE",
        help="pictures to begin with: findings.json of `visionzoo data doctor --label-next`, or a name on each line",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=whole(0), metavar="P", help="default: 8765, or the next that is free")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="that others know this server by, with --host"
    )
    parser.add_argument("--token", help="that requests must have (default: made up where others reach the server)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        raise ValueError(f"the demo needs {', '.join(missing)}: pip install 'visionzoo[demo]'")
    if args.port is not None and args.port > 65535:
        raise ValueError(f"--port {args.port} must be at most 65535")
    from visionzoo.serve.demo import Demo, DemoOptions
    from visionzoo.serve.run import serve

    demo = Demo(
        DemoOptions(
            classify=args.classify,
            clip=args.clip,
            segment=args.segment,
            weights=args.weights,
            folder=args.folder,
            out=args.out,
            first=_named_first(args.first),
            device=args.device,
        )
    )

    def ready(address: str) -> None:
        say(f"{address}\nCtrl-C stops it", flush=True)
        if not args.no_browser and sys.stdout.isatty() and _has_screen():
            webbrowser.open(address)

    try:
        serve(demo, host=args.host, port=args.port, token=args.token, names=args.name, ready=ready)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        demo.close()
    return 0


def _named_first(path: str | None) -> tuple[str, ...]:
    """The pictures that a file names."""
    if path is None:
        return ()
    from visionzoo.text import parse_json, read_text

    text = read_text(path)
    if not path.endswith(".json"):
        names: Any = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        found = parse_json(text, path)
        names = found.get("label_next") if isinstance(found, dict) else None
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"--first {path} names no pictures: give findings.json of --label-next, or a name on each line"
        )
    return tuple(names)


def _has_screen() -> bool:
    """Whether a browser would open in front of the person, and not in the terminal of another machine."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
