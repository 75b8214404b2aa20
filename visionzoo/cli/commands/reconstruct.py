"""``visionzoo reconstruct IMAGE... --model RUN --out sheet.png``"""

from __future__ import annotations

import argparse

from visionzoo.cli.commands.arguments import Subparsers, add_device, add_model, add_out
from visionzoo.cli.commands.output import check_picture
from visionzoo.terminal import say


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "reconstruct",
        help="draw what a masked image model makes of hidden patches",
        description="Hide patches of images, let a run of `train.py mae` draw them, and write a sheet: original, "
        "masked image, reconstruction, and reconstruction with the visible patches pasted.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    add_model(parser, "run folder of `train.py mae`, or embedded")
    parser.add_argument("--mask-ratio", type=float, metavar="SHARE", help="share that is hidden (default: the run's)")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is hidden (default: 0)")
    add_out(parser, "the picture to write", "sheet.png")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    check_picture("--out", args.out, args.images)
    from visionzoo.inference.reconstruction import draw_reconstruction

    made = draw_reconstruction(
        args.images, args.model, args.out, mask_ratio=args.mask_ratio, seed=args.seed, device=args.device
    )
    say(f"{made.out}: {made.hidden} of {made.patches} patches hidden, loss {made.loss:.4f}")
    return 0
