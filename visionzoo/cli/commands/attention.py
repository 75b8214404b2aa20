"""``visionzoo attention IMAGE --model M --out heat.png``"""

from __future__ import annotations

import argparse

from visionzoo.cli.commands.arguments import Subparsers, add_device, add_image_size, add_model, add_out, add_weights
from visionzoo.cli.commands.output import PICTURES, check_picture
from visionzoo.terminal import say


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "attention",
        help="draw where a model looks",
        description="Draw where a model looks in an image: attention rolled out over all blocks (arXiv 2005.00928), "
        "over the part of the image that the model sees.",
    )
    parser.add_argument("image", metavar="IMAGE", help="image file")
    add_model(parser)
    add_weights(parser)
    add_out(parser, "the picture to write", "heat.png")
    add_image_size(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    check_picture("--out", args.out, [args.image], PICTURES)
    from visionzoo.inference.attention import draw_attention

    out = draw_attention(
        args.image, args.model, args.out, weights=args.weights, image_size=args.image_size, device=args.device
    )
    say(out)
    return 0
