"""A training step of segmentation: each round of a conversation with a backward pass of its own, against all at once.

    python benchmarks/segment_step.py --threads 1

A step asks 11 times about every object: a first prompt, 8 corrective clicks, 2 rounds without one (arXiv 2304.02643,
appendix A). The mask that is fed back has no gradient, so a round can give its own before the next begins. ``at once``
is the step as it was before: one backward pass through all rounds. Peak memory is that of a process of its own, less
what it held before its first step. Gradients are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from harness import Record, compare_cases, in_fresh_process, machine
from torch import Tensor

from visionzoo.data.segment import SegmentData
from visionzoo.runs.memory import peak_bytes
from visionzoo.tasks.segment import SegmentTask
from visionzoo.types import SegmentBatch

ROUND_BY_ROUND, AT_ONCE = "11 rounds, one by one", "11 rounds at once"
FIRST, ONE = "the first round alone", "the first and one with a mask"


def build(args: argparse.Namespace, name: str) -> tuple[SegmentTask, SegmentBatch]:
    """A task from scratch and a batch of built-in shapes."""
    torch.manual_seed(0)
    task = SegmentTask(
        backbone=args.backbone, image_size=args.image_size, embedding_stride=4, decoder_dim=args.decoder_dim,
        encoder="full",
    )  # fmt: skip
    if name in (ONE, FIRST):
        task.clicks, task.mask_rounds = int(name == ONE), 0
    data = SegmentData(
        f"shapes:{2 * args.batch}", batch_size=args.batch, num_workers=0, shapes_size=args.image_size, val_fraction=0.0
    )
    data.preprocess = task.preprocess
    return task.train(), next(iter(data.train_dataloader()))


def step_of(name: str, task: SegmentTask, batch: SegmentBatch) -> Callable[[], None]:
    """Fill ``.grad`` of the task, from the same random numbers every time."""

    def step() -> None:
        task.zero_grad()
        torch.manual_seed(1)
        if name == AT_ONCE:
            losses = task.round_losses(task.conversation(batch), task.embed(batch.images))
            torch.stack([loss for loss, _ in losses]).sum().backward()
            return
        for part in task.loss_parts(batch, None):
            part.loss.backward(part.gradient)

    return step


def gradients(task: SegmentTask) -> dict[str, Tensor]:
    """Of everything that trains."""
    return {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


def check(args: argparse.Namespace) -> float:
    """The largest relative difference between the gradients of both ways."""
    found = []
    for name in (ROUND_BY_ROUND, AT_ONCE):
        task, batch = build(args, name)
        step_of(name, task, batch)()
        found.append(gradients(task))
    one, all_at_once = found
    worst = max(float((one[n] - g).abs().max()) / max(1.0, float(g.abs().max())) for n, g in all_at_once.items())
    if worst > 1e-5:
        raise SystemExit(f"gradients differ by {worst:.2g}, more than 1e-5")
    return worst


def memory(args: argparse.Namespace, name: str) -> float:
    """GiB that a step adds in a process that does nothing else."""
    names = ("backbone", "image_size", "decoder_dim", "batch", "threads")
    options = [f"--{k.replace('_', '-')}={v}" for k, v in vars(args).items() if k in names]
    return in_fresh_process(__file__, *options, "--only", name)["gib"]


def only(args: argparse.Namespace) -> None:
    """What the process of :func:`memory` does."""
    task, batch = build(args, args.only)
    before = peak_bytes()
    step_of(args.only, task, batch)()
    print(json.dumps({"gib": (peak_bytes() - before) / 2**30}))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_nano_patch4_32")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--decoder-dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=(ROUND_BY_ROUND, AT_ONCE, ONE, FIRST), help=argparse.SUPPRESS)
    parser.add_argument("--out", help="JSON file; by default benchmarks/results/segment-step-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        only(args)
        return
    record = Record("segment-step-cpu", {"machine": machine(), "arguments": vars(args)}, args.out)

    def measure() -> dict[str, Any]:
        worst = check(args)
        names = (ROUND_BY_ROUND, AT_ONCE, ONE, FIRST)
        held = {name: memory(args, name) for name in names}
        cases: dict[str, Callable[[], Any]] = {name: step_of(name, *build(args, name)) for name in names}
        row = compare_cases("a training step", cases, AT_ONCE, rounds=args.rounds, warmup=1, held=held)
        ratios = {name: held[ROUND_BY_ROUND] / held[name] for name in (FIRST, ONE)}
        print("memory of 11 rounds: " + ", ".join(f"{ratio:.2f} times {name}" for name, ratio in ratios.items()))
        print(f"gradients differ by {worst:.1e} at most")
        return {**row, "memory_times": ratios, "gradients_differ_by": worst}

    record.row("training step", measure)
    record.finish()


if __name__ == "__main__":
    main()
