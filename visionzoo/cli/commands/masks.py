"""``visionzoo masks IMAGE --model M --point x,y --out overlay.png``"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from visionzoo.cli.commands.arguments import (
    Subparsers,
    add_device,
    add_image_size,
    add_json,
    add_model,
    add_out,
    add_weights,
    whole,
)
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.export.folder import is_exported
from visionzoo.files import refuse_address
from visionzoo.terminal import say
from visionzoo.text import read_numbers

if TYPE_CHECKING:
    from visionzoo.inference.masks import Segmented
    from visionzoo.inference.sam_predictor import SamPredictor

#: What a picture can be written as; another ending would overwrite something that is none.
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def _numbers(text: str, counts: tuple[int, ...], form: str) -> list[float]:
    try:
        return read_numbers(text, counts, form)
    except ValueError as error:  # of which argparse would not say the text
        raise argparse.ArgumentTypeError(str(error)) from None


def _point(text: str) -> list[float]:
    return _numbers(text, (2, 3), "x,y or x,y,label, where the label is 1 for the object and 0 for what is not")


def _box(text: str) -> list[float]:
    return _numbers(text, (4,), "x0,y0,x1,y1")


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "masks",
        help="segment what is clicked on, or everything",
        description="Segment an object by clicks and a box, by its name, or everything in an image, with a promptable "
        "model (SAM). Pixels count from the upper left corner.",
    )
    parser.add_argument("image", metavar="IMAGE", help="image file")
    add_model(parser, "run folder, vit_b, vit_l, vit_h, or the name of a backbone (`visionzoo models`)")
    add_weights(parser)
    parser.add_argument(
        "--point",
        type=_point,
        action="append",
        default=[],
        metavar="X,Y[,LABEL]",
        help="click on the object, or with label 0 beside it; may be given several times",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="NAME",
        help='experimental: what to segment, such as "a cat", for a run with text prompts; may be given several times',
    )
    parser.add_argument("--text-model", metavar="CLIP", help="with --text: the CLIP of the run, where it has moved")
    parser.add_argument("--box", type=_box, metavar="X0,Y0,X1,Y1", help="box around the object")
    parser.add_argument("--all", action="store_true", help="segment everything, by a grid of clicks")
    add_out(parser, "the picture to write", "overlay.png")
    add_json(parser)
    add_image_size(parser)
    add_device(parser)
    group = parser.add_argument_group("with --all")
    group.add_argument("--points-per-side", type=whole(1), default=32, metavar="N", help="of the grid (default: 32)")
    group.add_argument("--min-iou", type=float, default=0.88, help="least predicted IoU of a mask (default: 0.88)")
    group.add_argument("--min-stability", type=float, default=0.95, help="least stability of a mask (default: 0.95)")
    group.add_argument(
        "--crop-layers", type=int, default=0, metavar="N", help="also search 4, 16 .. crops (default: 0)"
    )
    group.add_argument("--min-area", type=int, default=0, metavar="PIXELS", help="remove smaller holes and islands")
    parser.rare += group._group_actions


def run(args: argparse.Namespace) -> int:
    if [bool(args.point or args.box), args.all, bool(args.text)].count(True) != 1:
        raise ValueError("say what to segment: either --point and --box, or --text, or --all")
    if not os.path.isfile(args.image):
        refuse_address(args.image)
        raise FileNotFoundError(f"there is no image {args.image}")
    if Path(args.out).suffix.lower() not in PICTURES:
        raise ValueError(f"--out {args.out}: the file must end in one of {', '.join(PICTURES)}")
    if os.path.exists(args.out) and os.path.samefile(args.out, args.image):
        raise ValueError(f"--out {args.out} is the image itself; name another file")
    check_target("--json", args.json, ".json")
    from visionzoo.inference.masks import (
        load_sam,
        load_text_prompts,
        names_in_words,
        segment_all,
        segment_prompt,
        segment_text,
    )
    from visionzoo.models.sam import Sam

    if args.json:
        _check_pycocotools()
    points = [p[:2] for p in args.point]
    labels = [p[2] if len(p) == 3 else 1 for p in args.point]
    exported = is_exported(args.model)
    if exported and args.text:
        raise ValueError(f"{args.model} is exported, and answers points, boxes and --all; --text needs the run")
    prompts = load_text_prompts(args.model, args.text_model) if args.text else None
    model = (
        _exported(args)
        if exported
        else load_sam(args.model, weights=args.weights, image_size=args.image_size, device=args.device)
    )
    if args.all:
        result = segment_all(
            model,
            args.image,
            progress=True,
            points_per_side=args.points_per_side,
            pred_iou_thresh=args.min_iou,
            stability_score_thresh=args.min_stability,
            crop_n_layers=args.crop_layers,
            min_mask_region_area=args.min_area,
        )
    elif prompts is not None:
        assert isinstance(model, Sam)  # an exported one was refused above
        result = segment_text(model, args.image, args.text, prompts)
        say(names_in_words(args.model), file=sys.stderr)
    else:
        result = segment_prompt(model, args.image, points, labels, args.box)
    _draw(args, result, points, labels)
    if args.all and not result.masks:
        say(_why_none(result, args.min_iou, args.min_stability), file=sys.stderr)
    return 0


def _exported(args: argparse.Namespace) -> SamPredictor:
    """The predictor of an exported folder."""
    from visionzoo.export.predictors import load_exported
    from visionzoo.inference.sam_predictor import SamPredictor

    if args.weights is not None or args.image_size is not None:
        raise ValueError(f"{args.model} has weights and an image size of its own; leave the options out")
    predictor = load_exported(args.model)
    if not isinstance(predictor, SamPredictor):
        raise ValueError(f"{args.model} is an exported {type(predictor).__name__}, which gives no masks")
    return predictor


def _draw(args: argparse.Namespace, result: Segmented, points: list[list[float]], labels: list[float]) -> None:
    """The picture, and the JSON where it was asked for."""
    from visionzoo.inference.masks import coco_record, draw_segmented

    if args.json:
        emit_json(coco_record(result, os.path.basename(args.image)), args.json)
    shown = [int(label) for label in labels]
    out = draw_segmented(args.image, result, args.out, points=points, labels=shown, box=args.box)
    count = f"{len(result.masks)} mask{'s' if len(result.masks) != 1 else ''}"
    say(f"{out}: {count}", file=sys.stderr if args.json == "-" else sys.stdout)


def _why_none(result: Segmented, min_iou: float, min_stability: float) -> str:
    """Which of the two limits no mask reached, and the highest that any has."""
    if result.highest_iou <= min_iou > 0:
        return (
            f"no mask has a predicted IoU above {min_iou:g}: the highest of any is {result.highest_iou:.3f}; "
            "give a lower --min-iou"
        )
    if not result.highest_stability >= min_stability:
        highest = result.highest_stability
        shown = f"the highest of any is {highest:.3f}" if highest > -math.inf else "all of them are empty"
        return (
            f"no mask with a predicted IoU above {min_iou:g} has a stability of {min_stability:g}: {shown}; "
            "give a lower --min-stability"
        )
    return "the masks that were found lie at the edge of a crop, or are too small for --min-area"


def _check_pycocotools() -> None:
    from visionzoo.inference.mask_generator import need_pycocotools

    try:
        need_pycocotools("--json")
    except ImportError as error:
        raise ValueError(str(error)) from error
