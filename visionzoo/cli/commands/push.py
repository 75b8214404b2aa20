"""``visionzoo push RUN org/name``"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from visionzoo.cli.commands.arguments import Subparsers, add_json
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.terminal import say, visible_name


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "push",
        help="publish a run on a model hub, with a model card",
        description="Write a run's model, a card that is filled from the run, and its ancestors with their licences; "
        "then upload them. hf-hub:org/name opens it again in every command. With --out nothing leaves this machine.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("repository", metavar="org/name", help="the repository; it is made where it is not there yet")
    parser.add_argument("--licence", metavar="L", help="to publish under, such as mit (default: as the ancestors ask)")
    parser.add_argument(
        "--layout", choices=("visionzoo", "timm", "open_clip", "transformers"), default="visionzoo",
        help="which library opens the repository (default: visionzoo)",
    )  # fmt: skip
    parser.add_argument("--private", action="store_true", help="for you alone")
    parser.add_argument("--out", metavar="FOLDER", help="write the folder here and upload nothing; it must not exist")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    from visionzoo.hub.upload import check_repository

    check_repository(args.repository)
    from visionzoo.export.folder import new_folder
    from visionzoo.hub.folder import write_hub_folder
    from visionzoo.hub.upload import upload
    from visionzoo.runs.folder import RunFolder
    from visionzoo.weights.local import local_source

    folder = RunFolder.open(local_source(args.run, "classify"))
    place: AbstractContextManager[Path | str] = new_folder(args.out) if args.out else tempfile.TemporaryDirectory()
    address = None
    with place as made:
        written = Path(made)
        licence = write_hub_folder(folder, written, args.repository, layout=args.layout, licence=args.licence)
        files = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
        if not args.out:
            address = upload(written, args.repository, private=args.private, message=f"visionzoo push ({args.layout})")
    if args.json != "-":
        for name, size in files.items():
            say(f"  {visible_name(name)}  {size:,} bytes")
        where = f"published at {address}" if address else f"written to {args.out}, nothing was uploaded"
        say(f"{where}, licence {licence}")
        say(f"open it by hf-hub:{args.repository}" if address else f"open it by {args.out}")
    if args.json is not None:
        emit_json({"address": address, "folder": args.out, "licence": licence, "bytes": files}, args.json)
    return 0
