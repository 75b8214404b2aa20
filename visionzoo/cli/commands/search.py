"""``visionzoo search FOLDER "a red car" --model M``"""

from __future__ import annotations

import argparse
import os
import sys

from visionzoo.cli.commands.arguments import (
    CLIP,
    Subparsers,
    add_batch_size,
    add_device,
    add_json,
    add_model,
    add_out,
    add_top,
    add_weights,
)
from visionzoo.cli.commands.output import check_picture, check_target, emit_json
from visionzoo.cli.suggest import UsageError
from visionzoo.terminal import say, visible_name


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "search",
        help="find images by a description",
        description="Find the images of a folder that fit a description, by a CLIP or SigLIP. The folder is embedded "
        "once; after that only new and changed images are. Images that cannot be read are listed, and the exit status "
        "is then 1.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of images, searched at any depth")
    parser.add_argument("queries", metavar="QUERY", nargs="*", help='what to look for, such as "a red car"')
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="find images like this one")
    add_model(parser, CLIP)
    add_weights(parser)
    add_top(parser, "images for each query", 12)
    add_out(parser, "draw what was found as a contact sheet")
    add_json(parser)
    parser.add_argument("--cache", metavar="FOLDER", help="where embeddings are kept (default: the user's cache)")
    add_batch_size(parser, 32)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    if args.out:
        check_picture("--out", args.out, args.image)
    if not os.path.exists(args.folder) and any(map(os.path.isdir, args.queries)):
        raise UsageError(f'the arguments are the other way round: visionzoo search {args.queries[-1]} "{args.folder}"')
    if not args.queries and not args.image:
        raise ValueError('say what to look for: a description such as "a red car", or --image FILE')
    from visionzoo.data.sources.base import printable
    from visionzoo.inference.load_clip import load_clip
    from visionzoo.inference.search import ImageSearch, search_sheet

    model, _ = load_clip(args.model, args.device, weights=args.weights)
    search = ImageSearch(model, cache_dir=args.cache, batch_size=args.batch_size).index(args.folder)
    done = search.report
    notes = [f"{done.images:,} images", f"{done.encoded:,} of them new or changed"]
    notes += [f"{done.dropped:,} gone since"] if done.dropped else []
    say(", ".join(notes), file=sys.stderr)
    found = list(zip(args.queries, search.find_all(args.queries, args.top), strict=True))
    if args.image:
        found += zip(args.image, search.find_like(args.image, args.top), strict=True)
    if args.json:
        records = [
            {"query": query, "matches": [{"image": printable(m.path), "score": round(m.score, 6)} for m in matches]}
            for query, matches in found
        ]
        emit_json(records, args.json)
    if args.json != "-":
        for query, matches in found:
            say(f"\n{query}" if len(found) > 1 else query)
            for match in matches:
                say(f"  {match.score:6.3f}  {visible_name(printable(match.path))}")
    if args.out:
        say(f"written to {search_sheet(found, args.out)}", file=sys.stderr)
    for image in done.unreadable:
        say(visible_name(f"cannot read {image.name}: {image.reason}"), file=sys.stderr)
    return 1 if done.unreadable else 0
