"""Inference and training steps of backbones: visionzoo against timm, torchvision and transformers.

    python benchmarks/throughput.py --models vit_base_patch16_224 swin_tiny_patch4_window7_224

Same weights (moved across by our adapters), same images, 1,000 classes, the same optimizer; logits are compared before
anything is timed. bf16 is autocast in training, and bf16 weights in inference, on all sides. A peer that is not
installed, or has no such model, is left out, and the record says so.
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
from peers import backbone, those_there
from torch import Tensor, nn
from torch.nn import functional as F

import visionzoo as vz
from visionzoo.runs.memory import peak_bytes

OURS = "visionzoo"
PEERS = ("timm", "torchvision", "transformers")
MODELS = (
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swin_base_patch4_window7_224",
)
CLASSES = 1000
TOLERANCE = 1e-4


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """(B, K), whatever the library wraps them in."""
    out = network(images)
    return out if isinstance(out, Tensor) else out.logits


def build(
    args: argparse.Namespace, name: str, job: str, precision: str, names: list[str]
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The named cases on one batch and the same weights, and why others are absent."""
    torch.manual_seed(0)
    ours = vz.create_classifier(name, CLASSES).eval()
    peers = {kind: partial(backbone, kind, name, ours, CLASSES) for kind in names if kind != OURS}
    found, absent = those_there(peers)
    networks: dict[str, nn.Module] = {OURS: ours, **{kind: twin.eval() for kind, twin in found.items()}}
    if args.check and len(networks) > 1:
        compare(networks, torch.randn(2, 3, *ours.image_size))
    images = torch.randn(args.batch, 3, *ours.image_size, device=args.device)
    labels = torch.randint(CLASSES, (args.batch,), device=args.device)
    cases = {}
    for kind in [n for n in names if n in networks]:
        network = networks[kind].to(args.device)
        call: Any = torch.compile(network) if args.compile else network
        if job == "inference":
            cases[kind] = _inference(call, network, images, precision)
        else:
            cases[kind] = _training(call, network.train(), images, labels, precision, args.device)
    return cases, absent


def compare(networks: dict[str, nn.Module], images: Tensor) -> None:
    """The same logits, or no benchmark.

    Raises:
        SystemExit: naming who differs.
    """
    with torch.no_grad():
        reference = logits(networks[OURS], images)
        for kind, network in networks.items():
            difference = float((logits(network, images) - reference).abs().max() / reference.abs().max().clamp(min=1))
            if kind != OURS:
                print(f"difference of logits from {kind}: {difference:.1e}")
            if not difference <= TOLERANCE:
                raise SystemExit(f"{kind} does not compute the same: {difference:.1e}; nothing was timed")


def _inference(call: Any, network: nn.Module, images: Tensor, precision: str) -> Callable[[], Any]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network.to(dtype)
    batch = images.to(dtype)

    def run() -> Tensor:
        with torch.inference_mode():
            return logits(call, batch)

    return run


def _training(
    call: Any, network: nn.Module, images: Tensor, labels: Tensor, precision: str, device: str
) -> Callable[[], Any]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    bf16 = precision == "bf16"

    def run() -> None:
        with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = F.cross_entropy(logits(call, images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def measure(args: argparse.Namespace, name: str, job: str, precision: str) -> dict[str, Any]:
    """One row of the record; a case that runs out of memory is left out, and said."""
    names = [OURS, *args.peers]
    cases, absent = build(args, name, job, precision, names)
    fitting = those_that_fit(cases, absent)
    if OURS not in fitting:
        return {"absent": absent, "cases": {}}
    flops = {kind: count_flops(run) for kind, run in fitting.items()}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    clock = clock_of(args.device)
    peak = matmul_peak(dtype, args.device, clock=clock)
    row = compare_cases(
        f"{name}, {job}, {precision}, batch {args.batch}",
        fitting,
        None,
        rounds=args.rounds,
        warmup=args.warmup,
        device=args.device,
        # one network on all sides; torch's counter does not see every fused product of ours
        flops=dict.fromkeys(fitting, max(flops.values())),
        peak=max(peak, matmul_peak(dtype, args.device, clock=clock)),
        held=memory(args, name, job, precision, list(fitting)) if args.memory else None,
        units=dict.fromkeys(fitting, float(args.batch)),
    )
    return {**row, "absent": absent}


def memory(args: argparse.Namespace, name: str, job: str, precision: str, names: list[str]) -> dict[str, float]:
    """Peak GiB of each case, each in a process of its own."""
    shared = ["--models", name, "--jobs", job, "--precision", precision, "--batch", str(args.batch)]
    shared += ["--device", args.device, "--no-check"]
    return {n: in_fresh_process(__file__, "--only", n, *shared)["peak"] / 2**30 for n in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--jobs", nargs="+", choices=("inference", "training"), default=["inference", "training"])
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; 1 makes CPU time meaningful")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile on all sides")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare outputs first")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--out", default=None, help="JSON file; by default benchmarks/results/throughput-DEVICE.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    known = vz.list_backbones()
    if unknown := [n for n in args.models if n not in known]:
        parser.error(f"unknown models {', '.join(unknown)}; `visionzoo models` lists them")
    if args.only:
        cases, _ = build(args, args.models[0], args.jobs[0], args.precision[0], [args.only])
        cases[args.only](), cases[args.only]()
        print(json.dumps({"peak": peak_bytes(args.device)}))
        return
    facts = {"machine": machine(args.device, PEERS), "batch": args.batch, "compile": args.compile}
    record = Record(f"throughput-{args.device}", facts, args.out)
    for name in args.models:
        for job in args.jobs:
            for precision in args.precision:
                record.row(f"{name}, {job}, {precision}", partial(measure, args, name, job, precision))
    record.finish()


if __name__ == "__main__":
    main()
