"""One training step of MAE: visionzoo against transformers' ViTMAEForPreTraining.

    python benchmarks/mae.py --precision fp32 bf16 --batch 8

Same weights (moved across by our adapter), same images, same noise, same optimizer; loss, prediction and gradients are
compared before anything is timed. bf16 is autocast on both sides. Where transformers is not installed, ours alone is
timed, and the record says so. ``visionzoo`` is ``mae.loss``, what training calls;
``visionzoo, all patches`` also predicts the visible patches, as transformers does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import (
    Record,
    clock_of,
    compare_cases,
    count_flops,
    in_fresh_process,
    machine,
    matmul_peak,
    those_that_fit,
)
from peers import mae, those_there
from torch import Tensor, nn

import visionzoo as vz
from visionzoo.models.mae import MAE
from visionzoo.runs.memory import peak_bytes
from visionzoo.weights.adapters import LAYOUTS

OURS, WHOLE, THEIRS = "visionzoo", "visionzoo, all patches", "transformers"
LOSS_TOLERANCE, PREDICTION_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4, 1e-4


def step(
    loss: Callable[[], Tensor], model: nn.Module, args: argparse.Namespace, precision: str
) -> Callable[[], Tensor]:
    """Forward, backward and, unless it is left out, AdamW, which is the same on all sides."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95), fused=True) if args.optimizer else None
    bf16 = precision == "bf16"

    def run() -> Tensor:
        with torch.autocast(args.device, torch.bfloat16) if bf16 else contextlib.nullcontext():
            value = loss()
        value.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()
        return value.detach()

    return run


def build(
    args: argparse.Namespace, precision: str, names: list[str]
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """The steps of the named cases, on the same weights and the same batch, and why others are absent.

    Nothing else is kept in memory.
    """
    torch.manual_seed(0)
    model = vz.create_mae(args.model)
    size = model.image_size
    images = torch.randn(args.batch, 3, *size)
    noise = torch.rand(args.batch, (size[0] // model.patch_size) * (size[1] // model.patch_size))
    found, absent = those_there({THEIRS: partial(mae, model)} if THEIRS in names else {})
    twin = found.get(THEIRS)
    if args.check and twin is not None and len(names) > 1:
        compare(model, twin, images[:2], noise[:2])
    images, noise = images.to(args.device), noise.to(args.device)
    cases = {}
    for name in [n for n in names if n not in absent]:
        network: Any = (twin if name == THEIRS else model).to(args.device).train()  # type: ignore[union-attr]
        if name == OURS:
            loss = partial(torch.compile(network.loss) if args.compile else network.loss, images, noise)
        else:
            call = torch.compile(network) if args.compile else network
            loss = partial(_loss_of, partial(call, images, noise=noise))
        cases[name] = step(loss, network, args, precision)
    return cases, absent


def _loss_of(call: Callable[[], Any]) -> Tensor:
    return call().loss


def compare(model: MAE, twin: Any, images: Tensor, noise: Tensor) -> None:
    """Same loss, prediction and gradients in float32, or no benchmark.

    Raises:
        SystemExit: naming what differs.
    """
    whole, theirs = model(images, noise), twin(images, noise=noise)
    model.loss(images, noise).backward()
    theirs.loss.backward()
    ours = LAYOUTS["transformers5_mae"].from_timm(
        {k: p if p.grad is None else p.grad for k, p in model.named_parameters()}
    )
    # Some gradients are zero but for rounding (those of the keys' biases), so a share of the largest is allowed too.
    reference = {k: p.grad for k, p in twin.named_parameters() if p.grad is not None}
    largest = max(g.norm() for g in reference.values())
    gradient = max(((ours[k] - g).norm() / (g.norm() + 1e-3 * largest)).item() for k, g in reference.items())
    found = {
        "loss": (abs(whole.loss.item() - theirs.loss.item()), LOSS_TOLERANCE),
        "prediction": ((whole.prediction - theirs.logits).abs().max().item(), PREDICTION_TOLERANCE),
        "gradient, relative": (gradient, GRADIENT_TOLERANCE),
    }
    print("differences: " + ", ".join(f"{name} {value:.1e}" for name, (value, _) in found.items()))
    if wrong := [name for name, (value, limit) in found.items() if not value <= limit]:
        raise SystemExit(f"the two networks do not agree in {', '.join(wrong)}; nothing was timed")
    model.zero_grad()
    twin.zero_grad()


def memory(args: argparse.Namespace, precision: str, names: list[str]) -> dict[str, float]:
    """Peak GiB of each case, each in a process of its own."""
    shared = ["--model", args.model, "--batch", str(args.batch), "--device", args.device, "--precision", precision]
    shared += [] if args.optimizer else ["--no-optimizer"]
    return {name: in_fresh_process(__file__, "--only", name, *shared)["peak"] / 2**30 for name in names}


def measure(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    cases, absent = build(args, precision, [OURS, WHOLE, THEIRS])
    cases = those_that_fit(cases, absent)
    if OURS not in cases:
        return {"absent": absent, "cases": {}}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    row = compare_cases(
        f"{args.model}, {precision}, batch {args.batch}",
        cases,
        THEIRS,
        rounds=args.rounds,
        warmup=args.warmup,
        device=args.device,
        flops={name: count_flops(run) for name, run in cases.items()},
        peak=matmul_peak(dtype, args.device, clock=clock_of(args.device)),
        held=memory(args, precision, list(cases)) if args.memory else None,
        units=dict.fromkeys(cases, float(args.batch)),
    )
    return {**row, "absent": absent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mae_vit_base_patch16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; 1 makes CPU time meaningful")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile on all sides")
    parser.add_argument("--no-optimizer", dest="optimizer", action="store_false", help="time forward and backward only")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare outputs first")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--out", default=None, help="JSON file; by default benchmarks/results/mae-DEVICE.json")
    parser.add_argument("--only", choices=(OURS, WHOLE, THEIRS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only:
        run = build(args, args.precision[0], [args.only])[0][args.only]
        run(), run()
        print(json.dumps({"peak": peak_bytes(args.device)}))
        return
    facts = {"machine": machine(args.device, ("transformers",)), "batch": args.batch, "model": args.model}
    facts |= {"optimizer": args.optimizer, "compile": args.compile, "rounds": args.rounds}
    record = Record(f"mae-{args.device}", facts, args.out)
    for precision in args.precision:
        record.row(precision, partial(measure, args, precision))
    record.finish()


if __name__ == "__main__":
    main()
