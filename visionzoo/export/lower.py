"""A float32 file of a plan in another precision, and what a person should know of it.

Legend: C channels, (H, W) pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.readable_names import readable_names
from visionzoo.export.feeds import Pictures, data_images, pixel_batch
from visionzoo.export.half import to_fp16
from visionzoo.export.parts import Feed, GraphPart, Plan
from visionzoo.export.predictors import ExportedClassifier, ExportedZeroShot
from visionzoo.export.proof import Proof, Run
from visionzoo.export.quantise import Accuracy, to_int8
from visionzoo.export.to_onnx import OnnxRunner
from visionzoo.export.to_torch import in_precision
from visionzoo.inference.score import open_labelled, score
from visionzoo.runs.environment import describe_environment

#: Fewer pictures say nothing of ranges.
LEAST_IMAGES = 8
#: Pictures that int8 is calibrated on, and labelled ones that it is judged by, at most.
CALIBRATION, LABELLED = 64, 1000
#: Timed runs; the median counts.
ROUNDS = 7


def lower_precision(
    plan: Plan, part: GraphPart, path: Path, precision: str, pictures: Sequence[Image.Image], data: Pictures | None
) -> tuple[Proof, list[str]]:
    """Bring a file to ``fp16`` or ``int8`` in place.

    Returns:
        its proof, and what to say of it: what was kept in fp32, accuracy, size and speed.

    Raises:
        NotTheSame, ValueError: as :func:`to_fp16` and :func:`to_int8`.
    """
    before, size, feed = OnnxRunner(path), path.stat().st_size, next(iter(part.feeds(pictures)))
    if precision == "fp16":
        proof, kept = to_fp16(path, part, pictures)
        notes = [f"fp16, {part.name}: kept in fp32: {', '.join(kept) or 'nothing'}"]
    else:
        assert data is not None, "calibration_pictures has looked"
        proof, notes = _int8(plan, part, path, pictures, data)
    times = times_as_fast(before, OnnxRunner(path), feed)
    smaller = size / path.stat().st_size
    notes.append(
        f"{precision}, {part.name}: {smaller:.2f} times smaller than fp32, {times:.2f} times as fast on {_here()}"
    )
    if times < 1:
        notes.append(f"{precision} is not faster than fp32 on this machine: use it for its size alone")
    if precision == "int8":
        times = times_as_fast(_bf16_in_torch(part), OnnxRunner(path), feed)
        notes.append(
            f"int8, {part.name}: {times:.2f} times as fast as bf16 in PyTorch here (--to pt2 --precision bf16)"
        )
    return proof, notes


def _bf16_in_torch(part: GraphPart) -> Run:
    """The network in bf16 by PyTorch, which ONNX Runtime does not have on CPUs."""
    module = in_precision(part.module, torch.bfloat16)

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            module(*map(torch.from_numpy, arrays))
        return []

    return run


def calibration_pictures(plan: Plan, data: Pictures | None) -> list[np.ndarray]:
    """Pictures (1, C, H, W) uint8 that int8 is calibrated on: of the training split, where the data have one.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a plan whose graphs take more than pictures, no data, or too few pictures.
    """
    for part in plan.parts:
        if [port.name for port in part.inputs] != ["images"]:
            raise ValueError(f"int8 is for graphs of pictures alone, and {part.name} has other inputs; use fp16")
    if data is None:
        raise ValueError("int8 is calibrated on pictures like those to come: give them by --data.path")
    images = data_images(data, CALIBRATION, training=True)
    if len(images) < LEAST_IMAGES:
        raise ValueError(
            f"int8 finds the ranges of values on pictures like those to come, and {len(images)} are too few: give at "
            f"least {LEAST_IMAGES} by --data.path, better some hundred"
        )
    return [pixel_batch(images, plan.preprocess, i, 1).numpy() for i in range(len(images))]


def _int8(
    plan: Plan, part: GraphPart, path: Path, pictures: Sequence[Image.Image], data: Pictures
) -> tuple[Proof, list[str]]:
    calibration = calibration_pictures(plan, data)
    accuracy = _accuracy(plan, part, data)
    done = to_int8(path, part, calibration, pictures, accuracy)
    notes = [
        f"int8, {part.name}: ranges by {done.method.lower()} of {len(calibration)} pictures; kept in fp32: "
        f"{', '.join(done.kept) or 'nothing'}"
    ]
    if done.accuracy is None:
        cosine = min(row.cosine for row in done.proof.rows)
        notes.append(f"int8, {part.name}: no labels to judge it by; the least cosine of an output is {cosine:.4f}")
    else:
        fp32, int8 = (100 * x for x in done.accuracy)
        notes.append(f"int8: top-1 {fp32:.2f} % before, {int8:.2f} % after, on {done.labelled} labelled pictures")
    return done.proof, notes


def _accuracy(plan: Plan, part: GraphPart, data: Pictures) -> Accuracy | None:
    """Top-1 of a file on the user's labelled pictures; None where they have no labels, or the model has none."""
    if "labels" not in plan.facts or plan.facts["multi_label"]:
        return None
    source = _labelled(data)
    if source is None:  # which the notes say
        return None
    if len(source) > LABELLED:
        source = source.take(np.linspace(0, len(source) - 1, LABELLED).round().astype(int))
    make = ExportedZeroShot if plan.kind == "zero-shot" else ExportedClassifier
    outputs = [port.described() for port in part.outputs]
    spec = {"name": plan.name, "backbone": plan.backbone, "preprocess": plan.preprocess.to_dict(), **plan.facts}
    spec["labels"] = readable_names(plan.facts["labels"])  # as the source's
    spec["graphs"] = {"model": {"outputs": outputs}}

    def accuracy(runner: OnnxRunner) -> tuple[float, int]:
        found = score(make(spec, runner), source)
        return found.accuracy, found.images

    return accuracy


def _labelled(data: Pictures) -> Source | None:
    """Pictures with one label each to judge by; None where there are none."""
    if isinstance(data, Splits):
        source = data.to_evaluate
        return None if source.multi_label or not (source.targets >= 0).any() else source
    try:
        return open_labelled(data)
    except ValueError:
        return None


def times_as_fast(one: Run, other: Run, feed: Feed) -> float:
    """How many times as fast the other is, by turns: the median of several, so that what else runs here slows both."""
    arrays = [x.numpy() for x in feed.inputs]
    ratios = []
    for _ in range(2 + ROUNDS):
        start = time.perf_counter()
        one(*arrays)
        middle = time.perf_counter()
        other(*arrays)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios[2:])


def _here() -> str:
    """This machine's processor, in words."""
    processor = describe_environment()["processor"]
    vnni = "with" if "avx512_vnni" in processor["features"] else "without"
    return f"{processor['name']} ({vnni} VNNI), {processor['cpus_allowed']} cores"
