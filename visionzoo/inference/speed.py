"""How fast a classifier is on this machine and what memory it takes, each measurement in a process of its own.

``python -m visionzoo.inference.speed JSON`` is such a process. Peak memory is only known of a whole process, and one
that runs out of memory then ends nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Job = Literal["inference", "training"]
Precision = Literal["fp32", "bf16"]

#: Share of the free memory that a batch has to leave free.
HEADROOM = 0.15
#: How often a process looks at its own memory, in seconds.
WATCH = 0.02


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    model: str  #: name of a backbone, or folder of a classify run
    job: Job  #: ``training`` is a step of AdamW on cross entropy, on images that are on the device already
    batch: int
    image_size: int | None = None  #: pixels, of a backbone; None for its own
    num_classes: int = 1000  #: of a backbone
    precision: Precision = "fp32"  #: bf16 is bf16 weights in inference, and autocast in training
    device: str = "cpu"
    compile: bool = False
    threads: int | None = None  #: of the CPU; None for torch's own choice
    rounds: int = 10  #: timed repetitions, after two that are not
    latency: bool = False  #: also time single images


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What came out."""

    image_size: tuple[int, int]
    params: int
    seconds: float  #: median of a batch
    spread: tuple[float, float]  #: quartiles of it
    peak: int  #: bytes: allocated on a GPU, resident on a CPU, the process itself included
    budget: int  #: bytes that it may take, so that :data:`HEADROOM` of what was free stays free
    latency: tuple[float, float] | None  #: seconds of one image, p50 and p95


class OutOfMemory(Exception):
    """It takes more memory than it may."""


def measure(case: Case) -> Speed:
    """Run a case in a process of its own.

    Raises:
        OutOfMemory: if its memory does not suffice, with the headroom.
        ValueError: if it fails for another reason.
    """
    environment = {**os.environ, "PYTHONPATH": _with_ours()}
    command = [sys.executable, "-m", "visionzoo.inference.speed", json.dumps(asdict(case))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "out_of_memory" in found or done.returncode == -9:
        raise OutOfMemory(found.get("out_of_memory", "ended by the system"))
    if "seconds" not in found:
        said = done.stderr.strip().splitlines()
        raise ValueError(found.get("error") or (said[-1] if said else "the measurement ended without a word"))
    found |= {"image_size": tuple(found["image_size"]), "spread": tuple(found["spread"])}
    latency = found.pop("latency")
    return Speed(**found, latency=None if latency is None else tuple(latency))


def _with_ours() -> str:
    return os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


# ---- in the process -------------------------------------------------------------------------------------------------


def run_here(case: Case) -> Speed:
    """Run a case in this process.

    Raises:
        OutOfMemory: as :func:`measure`.
        ValueError: for an unknown model or device, or a run of another task.
    """
    import torch

    from visionzoo.inference.device import resolve_device
    from visionzoo.runs.memory import free_bytes, is_out_of_memory, peak_bytes, resident_bytes

    device = resolve_device(case.device)
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    on_cpu = device.type == "cpu"
    budget = int(free_bytes(str(device)) * (1 - HEADROOM)) + (resident_bytes(os.getpid()) if on_cpu else 0)
    if on_cpu:
        threading.Thread(target=_end_above, args=(budget,), daemon=True).start()
    torch.manual_seed(0)
    try:
        model, size = _network(case)
        run, single = _steps(case, model.to(device), size, device)
        times = _times(run, 2, case.rounds, device)
        # one image last: the peak is that of the batch either way
        alone = _times(single, 3, max(20, 4 * case.rounds), device) if case.latency else []
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(error).splitlines()[0]) from error
    peak = peak_bytes(str(device))
    if peak > budget:
        raise OutOfMemory(f"took {peak} bytes of {budget}")
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Speed(
        image_size=size,
        params=sum(p.numel() for p in model.parameters()),
        seconds=middle,
        spread=(low, high),
        peak=peak,
        budget=budget,
        latency=(statistics.median(alone), statistics.quantiles(alone, n=20)[-1]) if alone else None,
    )


def _network(case: Case) -> tuple[Any, tuple[int, int]]:
    """The classifier and its input size."""
    from visionzoo.models.bundle import load_bundle
    from visionzoo.models.classifier import create_classifier

    if not Path(case.model).is_dir():
        model = create_classifier(case.model, case.num_classes, image_size=case.image_size)
        return model, model.preprocess.image_size
    loaded, config = load_bundle(case.model)
    if config.task != "classify":
        raise ValueError(f"{case.model} is a run of {config.task}; name a run of classify, or a backbone")
    return loaded, config.preprocess.image_size


def _steps(
    case: Case, model: Any, size: tuple[int, int], device: Any
) -> tuple[Callable[[], object], Callable[[], object]]:
    """What is timed: a batch, and one image."""
    import torch
    from torch.nn import functional as F

    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    images = torch.randn(case.batch, len(model.preprocess.mean), *size, device=device)
    if case.job == "inference":
        model.eval().to(dtype)
        call = torch.compile(model) if case.compile else model
        images = images.to(dtype)

        def infer(batch: torch.Tensor) -> object:
            with torch.inference_mode():
                return call(batch)

        return lambda: infer(images), lambda: infer(images[:1].contiguous())
    model.train()
    call = torch.compile(model) if case.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(batch: torch.Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            out = call(batch)
            loss = F.cross_entropy(out.float(), torch.zeros(len(batch), dtype=torch.long, device=device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: step(images), lambda: step(images[:1])


def _times(run: Callable[[], object], warmup: int, rounds: int, device: Any) -> list[float]:
    """Seconds of each round."""
    import torch

    times = []
    for i in range(warmup + rounds):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return times


def _end_above(budget: int) -> None:
    """End this process before it takes memory from others."""
    from visionzoo.runs.memory import resident_bytes

    while True:
        if (held := resident_bytes(os.getpid())) > budget:
            _say({"out_of_memory": f"took {held} bytes of {budget}"})
            os._exit(0)
        time.sleep(WATCH)


def _say(found: dict[str, Any]) -> None:
    os.write(1, f"\n{json.dumps(found)}\n".encode())


def main(text: str) -> None:
    """Measure a case given as JSON and print what came out as the last line."""
    with contextlib.suppress(OSError):  # if the system must end somebody, then this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        _say(asdict(run_here(Case(**json.loads(text)))))
    except OutOfMemory as error:
        _say({"out_of_memory": str(error)})
    except (ValueError, OSError) as error:
        _say({"error": str(error)})


if __name__ == "__main__":
    main(sys.argv[1])
