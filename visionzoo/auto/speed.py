"""How fast a network is on this machine, in reading images and in training, so that a plan can be made.

Legend: B batch, C channels, (H, W) pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from visionzoo.data.sources.base import Source
from visionzoo.inference.stream import Stream
from visionzoo.models.classifier import Classifier

#: Seconds for which, and images up to which, the speed of a network is measured.
_SECONDS, _IMAGES = 2.0, 256
#: Images of the step by which precisions are compared.
_STEP = 4
#: What bfloat16 must gain to be worth its rounding.
_WORTH = 1.25


def images_per_second(stream: Stream, source: Source, batch: int) -> float:
    """Of the forward pass, reading included; measured on some images of a source, spread over it."""
    places = np.linspace(0, len(source) - 1, min(len(source), _IMAGES)).astype(int)
    begun = last = time.monotonic()
    done, seconds = 0, 0.0
    outputs = stream.run(
        len(places), lambda i: source.read(int(places[i])), lambda i: source.sample_id(int(places[i])), batch, "speed"
    )
    for number, output in enumerate(outputs):
        now = time.monotonic()
        # the first batch has threads started and buffers made; it counts where there is no other, or time for none
        if number or len(places) <= batch or now - begun > _SECONDS:
            done += len(output.positions) + len(output.unreadable)
            seconds += now - last
        last = now
        if now - begun > _SECONDS:
            break
    return max(done, 1) / max(seconds, 1e-6)


def training_precision(model: Classifier, device: torch.device) -> tuple[str, float]:
    """What to train in (of ``--trainer.precision``), and how many times as fast its steps are as those of float32.

    bfloat16 where the device multiplies it faster, as GPUs and processors with AMX do, and a step of this network, of
    some images, is faster as well.
    """
    if device.type not in ("cpu", "cuda"):  # nothing is known of others
        return "32-true", 1.0
    if device.type == "cpu" and _quickest(_product(torch.float32)) < _WORTH * _quickest(_product(torch.bfloat16)):
        return "32-true", 1.0  # without such units a step in bfloat16 can take ten times as long
    gain = _quickest(_step(model, device, mixed=False)) / _quickest(_step(model, device, mixed=True))
    return ("bf16-mixed", gain) if gain > 1 else ("32-true", 1.0)


def _product(kind: torch.dtype) -> Callable[[], object]:
    a, b = (torch.ones(256, 512, dtype=kind) for _ in range(2))
    return lambda: a @ b.T


def _step(model: Classifier, device: torch.device, *, mixed: bool) -> Callable[[], object]:
    """Forward and backward of a few images of noise; the gradients are thrown away."""
    preprocess = model.preprocess
    images = torch.rand(_STEP, len(preprocess.mean), *preprocess.image_size, device=device)
    weights = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = model.embed_images(images).float().mean()
        torch.autograd.grad(loss, weights, allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _quickest(work: Callable[[], object]) -> float:
    """Seconds of the best of some repetitions, after one that is not counted."""
    work()
    times: list[float] = []
    while len(times) < 5 and (not times or sum(times) < 0.2):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return max(min(times), 1e-9)
