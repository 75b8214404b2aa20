"""``visionzoo attention IMAGE --model M --out heat.png``"""

from __future__ import annotations

import argparse

from visionzoo.cli.commands.output import PICTURES, check_picture


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "attention",
        help="draw where a model looks",
        description="Draw where a model looks in an image: attention rolled out over all blocks (arXiv 2005.00928), "
        "over the part of the image that the model sees.",
    )
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--model", required=True, help="run folder, or the name of a backbone (`visionzoo models`)")
    parser.add_argument("--weights", help="for a backbone: file, folder, hf-hub:org/name, timm:tag or random")
    parser.add_argument("--out", default="heat.png", metavar="FILE", help="the picture to write (default: heat.png)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="for a backbone (default: its own)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> int:
    check_picture("--out", args.out, [args.image], PICTURES)
    from visionzoo.inference.attention import draw_attention

    out = draw_attention(
        args.image, args.model, args.out, weights=args.weights, image_size=args.image_size, device=args.device
    )
    print(out)
    return 0
