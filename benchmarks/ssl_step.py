"""Pretraining on views: a training step of SimCLR and DINO, and the views of photographs, against lightly.

    python benchmarks/ssl_step.py --threads 1 --size 96 224 --precision fp32 bf16

lightly's side is what its examples do, with its heads, losses and transforms, around the same backbone with the same
weights and the same views; its DINO example passes each view through the student by itself. Losses are compared before
anything is timed, and the two take turns. A small view has three sevenths of the size, as 96 of 224, in whole patches.
bf16 is autocast on both sides. The views are of one JPEG of 500 x 375 pixels, decoded each time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Record, compare_cases, in_fresh_process, machine, those_that_fit
from peers import installed, those_there
from PIL import Image
from torch import Tensor, nn

from visionzoo.data.images import open_image
from visionzoo.data.options import MultiViewOptions
from visionzoo.data.ssl_samples import ViewTransform, view_kinds
from visionzoo.models.ssl import create_ssl
from visionzoo.runs.memory import peak_bytes
from visionzoo.types import Preprocess

OURS, THEIRS = "visionzoo", "lightly"
SIMCLR, DINO, VIEWS = "simclr", "dino", "views"
TOLERANCE = 1e-4


def _fill(head: nn.Module, ours: nn.Module, prototypes: Tensor | None) -> None:
    """Our head's linear layers, in their order, in lightly's; its norms and ours begin with the same values."""
    pairs = zip(*([m for m in h.modules() if type(m) is nn.Linear] for h in (head, ours)), strict=False)
    for theirs, own in pairs:
        theirs.load_state_dict(own.state_dict(), strict=False)
    if prototypes is not None:
        with torch.no_grad():
            head.last_layer.weight_v.copy_(prototypes)  # type: ignore[union-attr,operator]


def theirs_simclr(model: Any) -> tuple[nn.Module, Callable[[list[Tensor]], Tensor]]:
    """lightly's SimCLR example around our backbone: the network, and its loss of views (B, C, H, W)."""
    installed("lightly")
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    hidden, out = model.projector[0].out_features, model.projector[3].out_features
    head = SimCLRProjectionHead(model.encoder.pooled_dim, hidden, out)
    _fill(head, model.projector, None)
    network = nn.ModuleDict({"backbone": copy.deepcopy(model.encoder), "head": head}).train()
    loss = NTXentLoss(temperature=model.temperature)
    return network, lambda views: loss(*(network["head"](network["backbone"](v).pooled) for v in views))


def theirs_dino(model: Any) -> tuple[nn.Module, Callable[[list[Tensor]], Tensor]]:
    """lightly's DINO example around our backbone."""
    installed("lightly")
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    hidden, out = model.projector.mlp[0].out_features, len(model.projector.prototypes)
    heads = [DINOProjectionHead(model.encoder.pooled_dim, hidden, 256, out) for _ in range(2)]
    for head in heads:
        _fill(head, model.projector.mlp, model.projector.prototypes)
    names = ("student", "teacher", "student_head", "teacher_head")
    parts = (copy.deepcopy(model.encoder), copy.deepcopy(model.encoder), *heads)
    network = nn.ModuleDict(dict(zip(names, parts, strict=True))).train()
    network["teacher"].requires_grad_(False)
    network["teacher_head"].requires_grad_(False)
    loss = DINOLoss(output_dim=out, warmup_teacher_temp=0.04, teacher_temp=0.04, warmup_teacher_temp_epochs=1)

    def call(views: list[Tensor]) -> Tensor:
        for student, teacher in (("student", "teacher"), ("student_head", "teacher_head")):
            update_momentum(network[student], network[teacher], m=0.996)
        with torch.no_grad():
            said = [network["teacher_head"](network["teacher"](v).pooled) for v in views[:2]]
        return loss(said, [network["student_head"](network["student"](v).pooled) for v in views], epoch=0)

    return network, call


def ours(model: Any) -> Callable[[list[Tensor]], Tensor]:
    """Our loss of views, with what follows a step."""

    def call(views: list[Tensor]) -> Tensor:
        found = model.loss(views)
        if found.seen is not None:
            model.remember(found.seen)
        model.follow(0.996)
        return found.loss

    return call


def step(network: nn.Module, loss: Callable[[list[Tensor]], Tensor], views: list[Tensor], precision: str) -> Any:
    """Forward, backward and AdamW, the same on both sides."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            value = loss(views)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return run


def loss_in_eval(network: nn.Module, loss: Callable[[list[Tensor]], Tensor], views: list[Tensor]) -> float:
    """The loss without what BatchNorm makes of a batch."""
    network.eval()
    with torch.no_grad():
        value = loss(views).item()
    network.train()
    return value


def build(
    args: argparse.Namespace, job: str, size: int, precision: str, names: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The steps of the named cases, and why others are absent."""
    torch.manual_seed(0)
    backbone, kind = (args.simclr, theirs_simclr) if job == SIMCLR else (args.dino, theirs_dino)
    options: dict[str, Any] = {"hidden": 512} if job == SIMCLR else {"hidden": 2048, "out": args.prototypes}
    model = create_ssl(backbone, job, image_size=size, **options).train()  # type: ignore[arg-type]
    sizes = [size] * 2 + ([small_size(args, size)] * args.small_views if job == DINO else [])
    views = [torch.randn(args.batch, 3, side, side) for side in sizes]
    found, absent = those_there({THEIRS: partial(kind, model)} if THEIRS in names else {})
    if THEIRS in found and len(names) > 1:
        network, loss = found[THEIRS]
        # in eval mode: our encoder's BatchNorm sees both views as one batch, as SimCLR's own code does
        one, other = copy.deepcopy(model).eval().loss(views).loss.item(), loss_in_eval(network, loss, views)
        print(f"{job}: losses {one:.6f} and {other:.6f}")
        if abs(one - other) > TOLERANCE * max(1.0, abs(other)):
            raise SystemExit(f"the two losses of {job} do not agree; nothing was timed")
    cases = {OURS: step(model, ours(model), views, precision)} if OURS in names else {}
    if THEIRS in found:
        cases[THEIRS] = step(*found[THEIRS], views, precision)
    return cases, absent


def small_size(args: argparse.Namespace, size: int) -> int:
    """Side of a small view beside a large one: three sevenths, in whole patches of 16."""
    return args.small_size or max(16, 16 * round(size * 3 / 7 / 16))


def measure(args: argparse.Namespace, job: str, size: int, precision: str) -> dict[str, Any]:
    """A row of steps."""
    cases, absent = build(args, job, size, precision, [OURS, THEIRS])
    cases = those_that_fit(cases, absent)
    shared = ["--batch", args.batch, "--size", size, "--small-size", small_size(args, size)]
    shared += ["--small-views", args.small_views, "--prototypes", args.prototypes, "--precision", precision]
    shared += ["--simclr", args.simclr, "--dino", args.dino, "--jobs", job]
    held = {n: in_fresh_process(__file__, "--only", n, *map(str, shared))["peak"] / 2**30 for n in cases}
    title = f"{job}, {size} pixels, {precision}, batch {args.batch}"
    row = compare_cases(
        title, cases, THEIRS, rounds=args.rounds, warmup=1, held=held,
        units=dict.fromkeys(cases, float(args.batch)),
    )  # fmt: skip
    return {**row, "absent": absent}


def measure_views(args: argparse.Namespace, size: int) -> dict[str, Any]:
    """A row of views: all those of DINO from a JPEG of noise that was smoothed, as photographs are."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    raw = file.getvalue()
    preprocess = Preprocess(image_size=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    options = MultiViewOptions(
        large_scale=(0.4, 1.0), small_views=args.small_views, small_size=small_size(args, size), small_scale=(0.05, 0.4)
    )
    transforms = [ViewTransform(kind, options, preprocess) for kind in view_kinds(options, preprocess)]

    def run_ours() -> None:
        for key in range(args.images):
            image = open_image(raw)
            for number, transform in enumerate(transforms):
                transform(image, 1000 * key + number)

    def lightlys() -> Callable[[], None]:
        installed("lightly")
        from lightly.transforms import DINOTransform

        views = DINOTransform(
            global_crop_size=size, local_crop_size=small_size(args, size), n_local_views=args.small_views
        )

        def run() -> None:
            for _ in range(args.images):
                views(Image.open(io.BytesIO(raw)).convert("RGB"))

        return run

    found, absent = those_there({THEIRS: lightlys})
    cases = {OURS: run_ours, **found}
    row = compare_cases(
        f"{2 + args.small_views} views of an image, {size} pixels", cases, THEIRS, rounds=args.rounds, warmup=1,
        units=dict.fromkeys(cases, float(args.images)),
    )  # fmt: skip
    return {**row, "absent": absent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=(SIMCLR, DINO, VIEWS), default=[SIMCLR, DINO, VIEWS])
    parser.add_argument("--simclr", default="timm/resnet18", help="backbone of the SimCLR row")
    parser.add_argument("--dino", default="vit_small_patch16_224", help="backbone of the DINO row")
    parser.add_argument("--size", type=int, nargs="+", default=[224], help="of large views in pixels; a row for each")
    parser.add_argument("--small-size", type=int, default=None, help="of small ones; three sevenths by default")
    parser.add_argument("--small-views", type=int, default=6)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=4, help="images of a round of the row of views")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; 1 makes CPU time meaningful")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default=None, help="JSON file; by default benchmarks/results/ssl-cpu.json")
    parser.add_argument("--only", choices=(OURS, THEIRS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only:
        run = build(args, args.jobs[0], args.size[0], args.precision[0], [args.only])[0][args.only]
        run(), run()
        print(json.dumps({"peak": peak_bytes("cpu")}))
        return
    facts = {"machine": machine("cpu", ("lightly",)), **{k: v for k, v in vars(args).items() if k != "only"}}
    record = Record("ssl-cpu", facts, args.out)
    for job, size in itertools.product(args.jobs, args.size):
        if job == VIEWS:
            record.row(f"{VIEWS}, {size} pixels", partial(measure_views, args, size))
            continue
        for precision in args.precision:
            record.row(f"{job}, {size} pixels, {precision}", partial(measure, args, job, size, precision))
    record.finish()


if __name__ == "__main__":
    main()
