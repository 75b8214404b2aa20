"""``visionzoo embed PATH --model M --out features.parquet``"""

from __future__ import annotations

import argparse
import sys

from visionzoo.cli.commands.arguments import (
    Subparsers,
    add_batch_size,
    add_device,
    add_image_size,
    add_model,
    add_out,
    add_weights,
)
from visionzoo.cli.commands.output import check_target
from visionzoo.terminal import say, visible_name


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "embed",
        help="write features of images to parquet",
        description="Write the pooled features of every image of a data set to a parquet table: id, split, label, "
        "embedding. Images that cannot be read are listed, and the exit status is then 1.",
    )
    parser.add_argument("path", metavar="PATH", help="folder of images, or anything that --data.path takes")
    add_model(parser)
    add_weights(parser)
    add_out(parser, "the parquet file to write", required=True)
    add_image_size(parser)
    parser.add_argument(
        "--no-labels", action="store_true", help="subfolders are no classes: take all images below PATH"
    )
    add_batch_size(parser, 32)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--out", args.out, ".parquet")
    from visionzoo.inference.embedding import embed_to_parquet

    report = embed_to_parquet(
        args.path,
        args.model,
        args.out,
        weights=args.weights,
        image_size=args.image_size,
        labels=not args.no_labels,
        batch_size=args.batch_size,
        device=args.device,
    )
    say(f"{report.out}: {report.rows} images, {report.width} features each")
    for image in report.unreadable:
        say(visible_name(f"left out {image.name}: {image.reason}"), file=sys.stderr)
    return 1 if report.unreadable else 0
