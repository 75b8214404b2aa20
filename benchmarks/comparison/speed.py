"""Throughput, latency and peak memory of one model, in this process, which must do nothing else."""

from __future__ import annotations

from typing import Any

import torch
from harness import interleave, synchronize
from torch.nn import functional as F

from comparison.models import use_channels_last
from visionzoo.models.classifier import create_classifier
from visionzoo.runs.memory import peak_bytes


def measure(
    job: str,
    model: str,
    *,
    image_size: int,
    num_classes: int,
    batch: int,
    rounds: int,
    precision: str,
    channels_last: bool,
    device: str,
) -> dict[str, Any]:
    """Time one model on random images.

    Args:
        job: ``training`` (a step of AdamW, the images on the device) or ``inference`` (also the latency of one image).
        model: its name.
        image_size, num_classes, batch, precision, channels_last, device: as in training.
        rounds: of each measurement.

    Returns:
        seconds of a batch (median and quartiles, wall and CPU), images a second by wall time, peak bytes of the
        process and what it held before the model, and for inference p50 and p95 of one image in milliseconds.
    """
    torch.manual_seed(0)
    before = peak_bytes(device)
    network: Any = create_classifier(model, num_classes, image_size=image_size).to(device)
    if channels_last:
        use_channels_last(network)
    images = torch.randn(batch, 3, image_size, image_size, device=device)
    cast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    result: dict[str, Any] = {}
    if job == "training":
        labels = torch.randint(num_classes, (batch,), device=device)
        optimizer = torch.optim.AdamW(network.train().parameters(), lr=1e-6, fused=True)

        def run() -> None:
            with cast:
                loss = F.cross_entropy(network(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    else:
        network.eval()

        def run() -> None:
            with torch.inference_mode(), cast:
                network(images)

    timing = interleave({model: run}, rounds=rounds, warmup=3, device=device)[model].summary()
    result |= {
        "seconds": timing,
        "images_per_second": batch / timing["wall"]["median"],
        "peak_bytes": peak_bytes(device),
        "bytes_before": before,
    }
    if job == "inference":
        one = images[:1].contiguous()

        def single() -> None:
            with torch.inference_mode(), cast:
                network(one)

        walls = torch.tensor(interleave({model: single}, rounds=10 * rounds, warmup=5, device=device)[model].wall)
        synchronize(device)
        p50, p95 = (1e3 * float(walls.quantile(q)) for q in (0.5, 0.95))
        result |= {"latency_ms": {"p50": p50, "p95": p95}}
    return result
