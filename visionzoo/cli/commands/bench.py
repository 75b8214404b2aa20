"""``visionzoo bench MODEL``"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from visionzoo.cli.commands.arguments import (
    Subparsers,
    add_device,
    add_image_size,
    add_json,
    add_model,
    the_model,
    whole,
)
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.export.folder import is_exported
from visionzoo.terminal import say

if TYPE_CHECKING:
    from visionzoo.inference.speed import Case, Speed


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure speed and memory on this machine",
        description="Throughput, latency of one image, peak memory and the largest batch that fits, for inference and "
        "for a training step. Every measurement runs in a process of its own. `visionzoo bench compare RUN1 RUN2` "
        "compares what two runs answered.",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        help="run folder of train.py classify, exported folder, or a backbone's name",
    )
    add_model(parser, "RUN, said in another place", required=False)
    parser.add_argument(
        "--jobs", nargs="+", choices=("inference", "training"), default=["inference", "training"], metavar="JOB",
        help="inference, training (default: both)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="default: 8, on a GPU 64")
    add_image_size(parser)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--rounds", type=whole(1), default=10, metavar="N", help="timed batches (default: 10)")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--max-batch", type=whole(0), default=1024, metavar="N",
        help="where the search for the largest batch ends (default: 1024; 0: no search)",
    )  # fmt: skip
    add_json(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    from visionzoo.weights.local import local_source

    args.model = local_source(the_model(args.run, args.model), "classify")
    if is_exported(args.model):
        return _exported(args)
    from visionzoo.inference.device import resolve_device
    from visionzoo.inference.speed import HEADROOM, Case, OutOfMemory, measure

    device = resolve_device(args.device)
    if not os.path.isdir(args.model):
        from visionzoo.backbones import backbone_info

        backbone_info(args.model)  # an unknown name is said at once
    elif args.image_size is not None:
        raise ValueError("--image-size is for backbones; a run has the size that it was trained with")
    records: list[dict[str, Any]] = []
    failed = False
    for job in args.jobs:
        case = Case(
            model=args.model,
            job=job,
            batch=args.batch_size or (64 if device.type == "cuda" else 8),
            image_size=args.image_size,
            precision=args.precision,
            device=str(device),
            compile=args.compile,
            threads=args.threads,
            rounds=args.rounds,
            latency=job == "inference",
        )
        say(f"{job}: {args.rounds} batches of {case.batch} ...", file=sys.stderr)
        record: dict[str, Any] = {"job": job, "batch": case.batch}
        try:
            record |= _facts(measure(case), case.batch)
        except OutOfMemory:
            record["out_of_memory"] = True
            failed = True
        if args.max_batch:
            say(f"{job}: searching the largest batch that leaves {HEADROOM:.0%} free ...", file=sys.stderr)
            record["largest_batch"] = largest_batch(replace(case, rounds=1, latency=False), args.max_batch)
            record["search_ended_at"] = args.max_batch
        records.append(record)
    value = {
        "model": args.model,
        "device": str(device),
        "precision": args.precision,
        "compiled": args.compile,
        "headroom": HEADROOM,
        "jobs": records,
    }
    if args.json != "-":
        _print(value)
    if args.json is not None:
        emit_json(value, args.json)
    return 1 if failed else 0


def _exported(args: argparse.Namespace) -> int:
    """The graph of an exported folder, in this process, which nothing else can be said of."""
    from visionzoo.export.bench import measure_exported

    fixed = {"--image-size": args.image_size, "--compile": args.compile, "--precision": args.precision != "fp32"}
    if said := [option for option, value in fixed.items() if value]:
        raise ValueError(f"{args.model} is exported as it is; leave {', '.join(said)} out")
    batch = args.batch_size or 8
    speed = measure_exported(args.model, batch=batch, rounds=args.rounds, threads=args.threads)
    low, high = speed.spread
    value = {
        "model": args.model,
        "device": "cpu",
        "precision": speed.precision,
        "runtime": "onnxruntime",
        "image_size": list(speed.image_size),
        "batch": batch,
        "images_per_second": batch / speed.seconds,
        "images_per_second_quartiles": [batch / high, batch / low],
        "latency_ms": {"p50": 1e3 * speed.latency[0], "p95": 1e3 * speed.latency[1]},
    }
    if args.json != "-":
        say(
            f"{args.model}: {batch / speed.seconds:.1f} images/s ({batch / high:.1f}-{batch / low:.1f}) in batches of "
            f"{batch}, one image {1e3 * speed.latency[0]:.1f} ms (p95 {1e3 * speed.latency[1]:.1f}), "
            f"{speed.precision}, ONNX Runtime on the CPU"
        )
    if args.json is not None:
        emit_json(value, args.json)
    return 0


def largest_batch(case: Case, most: int) -> int:
    """The largest batch up to ``most`` that leaves the headroom; 0 if one image does not fit."""
    from visionzoo.cli.batch_size import Measured, choose
    from visionzoo.inference.speed import OutOfMemory, measure

    def tried(size: int) -> Measured:
        try:
            speed = measure(replace(case, batch=size))
        except OutOfMemory:
            say(f"  {size}: too much", file=sys.stderr)
            return Measured(size, 0, 0, most)
        say(f"  {size}: {speed.peak / 2**30:.2f} of {speed.budget / 2**30:.2f} GiB", file=sys.stderr)
        return Measured(size, speed.peak, speed.budget, most)

    first = tried(1)
    if not first.fits:
        return 0
    # What a batch adds is about the same for every image: begin where that says it ends.
    second = tried(min(8, most))
    slope = max(1.0, (second.peak - first.peak) / max(1, second.size - 1)) if second.fits else float("inf")
    guess = int(0.9 * (first.budget - first.peak) / slope)
    if second.fits and second.size == most:
        return most
    return choose(tried, start=max(1, min(guess, most)))[0].size


def _facts(speed: Speed, batch: int) -> dict[str, Any]:
    """What is written of a measurement: rates a second, milliseconds, bytes."""
    low, high = speed.spread
    facts: dict[str, Any] = {
        "image_size": list(speed.image_size),
        "params": speed.params,
        "images_per_second": batch / speed.seconds,
        "images_per_second_quartiles": [batch / high, batch / low],
        "peak_bytes": speed.peak,
    }
    if speed.latency is not None:
        facts["latency_ms"] = {"p50": 1e3 * speed.latency[0], "p95": 1e3 * speed.latency[1]}
    return facts


def _print(value: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    known = next((record for record in value["jobs"] if "params" in record), None)
    size = "" if known is None else f", {known['params'] / 1e6:.1f} M parameters, {known['image_size'][0]} pixels"
    compiled = ", compiled" if value["compiled"] else ""
    say(f"{value['model']}{size}, {value['precision']}, {value['device']}{compiled}")
    table = Table("job", box=SIMPLE_HEAD)
    for heading in ("batch", "images/s", "quartiles", "one image ms, p50", "p95", "peak GiB", "largest batch"):
        table.add_column(heading, justify="right")
    for record in value["jobs"]:
        cells = [record["job"], str(record["batch"])]
        if "params" in record:
            low, high = record["images_per_second_quartiles"]
            latency = record.get("latency_ms")
            cells += [f"{record['images_per_second']:.1f}", f"{low:.1f}-{high:.1f}"]
            cells += [f"{latency['p50']:.1f}", f"{latency['p95']:.1f}"] if latency else ["", ""]
            cells.append(f"{record['peak_bytes'] / 2**30:.2f}")
        else:
            cells += ["out of memory", "", "", "", ""]
        largest = record.get("largest_batch")
        reached = largest is not None and largest == record["search_ended_at"]
        cells.append("" if largest is None else f"{largest}{' or more' if reached else ''}")
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
