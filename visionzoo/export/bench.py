"""How fast an exported graph of pictures is on this machine."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionzoo.export.folder import read_spec
from visionzoo.export.predictors import first_graph
from visionzoo.export.to_onnx import OnnxRunner


class ExportedSpeed(NamedTuple):
    """What came out of measuring a graph."""

    image_size: tuple[int, int]
    precision: str
    seconds: float  #: median of a batch
    spread: tuple[float, float]  #: quartiles of it
    latency: tuple[float, float]  #: seconds of one image, p50 and p95


def measure_exported(folder: str | Path, *, batch: int, rounds: int, threads: int | None = None) -> ExportedSpeed:
    """Time an exported folder's graph on noise, after three runs that are not timed.

    Args:
        folder: that ``visionzoo export`` wrote; of a SAM the encoder is timed.
        batch: images at a time.
        rounds: timed batches.
        threads: of the CPU; None for the runtime's own choice.

    Raises:
        FileNotFoundError, ValueError: as :func:`visionzoo.load_exported`.
    """
    spec: dict[str, Any] = read_spec(folder)
    path, port = first_graph(folder, spec)
    runner = OnnxRunner(path, threads or 0)
    height, width = spec["preprocess"]["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (batch, port["shape"][1], height, width), dtype=np.uint8)
    batches = _times(runner, _feed(spec, pixels), rounds)
    single = _times(runner, _feed(spec, pixels[:1]), max(20, 4 * rounds))
    low, middle, high = statistics.quantiles(batches, n=4, method="inclusive") if rounds > 1 else batches * 3
    return ExportedSpeed(
        image_size=(int(height), int(width)),
        precision=str(spec["precision"]),
        seconds=middle,
        spread=(low, high),
        latency=(statistics.median(single), statistics.quantiles(single, n=20)[-1]),
    )


def _feed(spec: dict[str, Any], pixels: np.ndarray) -> list[np.ndarray]:
    if spec["kind"] != "sam":
        return [pixels]
    return [pixels, np.tile(np.array(pixels.shape[2:]), (len(pixels), 1))]


def _times(runner: OnnxRunner, feed: list[np.ndarray], rounds: int) -> list[float]:
    times = []
    for _ in range(3 + rounds):
        start = time.perf_counter()
        runner(*feed)
        times.append(time.perf_counter() - start)
    return times[3:]
