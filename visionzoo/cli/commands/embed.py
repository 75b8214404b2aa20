"""``visionzoo embed PATH --model M --out features.parquet``"""

from __future__ import annotations

import argparse
import sys

from visionzoo.cli.commands.output import check_target


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "embed",
        help="write features of images to parquet",
        description="Write the pooled features of every image of a data set to a parquet table: id, split, label, "
        "embedding. Images that cannot be read are listed, and the exit status is then 1.",
    )
    parser.add_argument("path", metavar="PATH", help="folder of images, or anything that --data.path takes")
    parser.add_argument("--model", required=True, help="run folder, or the name of a backbone (`visionzoo models`)")
    parser.add_argument("--weights", help="for a backbone: file, folder, hf-hub:org/name, timm:tag or random")
    parser.add_argument("--out", required=True, metavar="FILE", help="the parquet file to write")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="for a backbone (default: its own)")
    parser.add_argument(
        "--no-labels", action="store_true", help="subfolders are no classes: take all images below PATH"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


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
    print(f"{report.out}: {report.rows} images, {report.width} features each")
    for image in report.unreadable:
        print(f"left out {image.name}: {image.reason}", file=sys.stderr)
    return 1 if report.unreadable else 0
