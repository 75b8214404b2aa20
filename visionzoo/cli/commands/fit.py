"""``visionzoo fit PHOTOS``"""

from __future__ import annotations

import argparse
import sys

from visionzoo.cli.commands.arguments import Subparsers, add_device, add_image_size
from visionzoo.cli.suggest import UsageError
from visionzoo.terminal import say


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "fit",
        help="from labelled photographs to the best classifier that the minutes allow",
        description="Look at the photographs, say the plan, and make the best classifier that the minutes allow. "
        "Features of a pretrained backbone are computed once and scored by k-NN and linear heads; adapters and full "
        "fine-tuning are tried as far as there is time. What wins on held-out training images is kept, and the "
        "validation or test images are looked at once, at the end. Ctrl-C keeps the best so far.",
    )
    parser.add_argument(
        "photos", metavar="PHOTOS", nargs="?",
        help="labelled images, as for train.py: a folder of class folders, parquet, a manifest, digits",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, help="for everything (default: 10)")
    parser.add_argument("--backbone", metavar="B", help="name of a backbone (default: a small one, well licensed)")
    parser.add_argument(
        "--weights", metavar="W",
        help="file, folder, run, hf-hub:org/name or timm:tag (default: those that are published for the backbone); "
        "none trains a small network from nothing",
    )  # fmt: skip
    parser.add_argument("--out", metavar="RUN", help="run folder (default: runs/fit-<data>-<backbone>)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run of this command that was stopped")
    parser.add_argument("--data.val_path", dest="val_path", metavar="PATH", help="held-out images of their own")
    add_image_size(parser)
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    if (args.photos is None) == (args.resume is None):
        raise UsageError("give the photographs, or --resume RUN to go on with a run that was stopped")
    if args.resume is not None:
        settled = {"backbone", "weights", "out", "val_path", "image_size"}
        if given := sorted(name for name in settled if getattr(args, name) is not None):
            raise UsageError(f"--resume goes on with what the run was given; leave out --{', --'.join(given)}")
    from visionzoo.auto.fit import fit, resume
    from visionzoo.tasks.engine.interrupt import RunInterruptedError

    try:
        if args.resume is not None:
            resume(args.resume, minutes=args.minutes, device=args.device)
            return 0
        fit(
            args.photos,
            minutes=10.0 if args.minutes is None else args.minutes,
            backbone=args.backbone,
            weights=args.weights,
            out=args.out,
            val_path=args.val_path,
            image_size=args.image_size,
            seed=args.seed,
            device=args.device,
        )
    except RunInterruptedError as stopped:
        say(stopped, file=sys.stderr)
        return stopped.code
    return 0
