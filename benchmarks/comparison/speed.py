"""Throughput, latency and peak memory of one model, in this process, which must do nothing else."""

from __future__ import annotations

from typing import Any

import comparison.small  # noqa: F401  registers the networks of the pilot
from comparison.energy import NoCounter, open_meter
from visionzoo.inference.speed import Case, run_here


def measure(*, precision: str, **spec: Any) -> dict[str, Any]:
    """Time one model on random images, see :class:`~visionzoo.inference.speed.Case`; bf16 is autocast, as in training.

    Returns:
        seconds of a batch (median and quartiles, wall and CPU), images a second by wall time, peak bytes of the
        process and what it held before the model, and for inference p50, p95 and every round of one image in
        milliseconds.
    """
    mixed = "bf16-mixed" if precision == "bf16" else "fp32"
    meter, why = None, ""
    try:
        meter = open_meter(spec["device"])
    except NoCounter as reason:
        why = str(reason)
    found = run_here(Case(**spec, precision=mixed, latency=spec["job"] == "inference"), meter=meter)
    low, high = found.spread
    clocks = {"wall": (low, found.seconds, high), "cpu": found.cpu}
    result: dict[str, Any] = {
        "seconds": {clock: dict(zip(("low", "median", "high"), times, strict=True)) for clock, times in clocks.items()},
        "images_per_second": spec["batch"] / found.seconds,
        "peak_bytes": found.peak,
        "bytes_before": found.before,
    }
    result |= {"no_energy": why} if found.joules is None else {"joules_per_image": found.joules / spec["batch"]}
    if found.latency is not None:
        result["latency_ms"] = {"p50": 1e3 * found.latency[0], "p95": 1e3 * found.latency[1]}
        result["latency_ms"]["rounds"] = [round(1e3 * seconds, 4) for seconds in found.singles]
    return result
