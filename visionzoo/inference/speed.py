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
Precision = Literal["fp32", "bf16", "bf16-mixed"]

#: Share of the free memory that a batch has to leave free.
HEADROOM = 0.15
#: Counters of energy are read by the thousandth of a second: as many rounds as take so many seconds are counted.
ENERGY_SECONDS = 1.0
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
    precision: Precision = "fp32"  #: bf16 is bf16 weights in inference, and autocast in training; bf16-mixed autocast
    channels_last: bool = False  #: memory format of the weights and, on its way in, of every batch
    device: str = "cpu"
    compile: bool = False
    threads: int | None = None  #: of the CPU; None for torch's own choice
    rounds: int = 10  #: timed repetitions, after three that are not
    latency: bool = False  #: also time single images


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What came out."""

    image_size: tuple[int, int]
    params: int
    seconds: float  #: median of a batch
    spread: tuple[float, float]  #: quartiles of it
    cpu: tuple[float, float, float]  #: CPU seconds of a batch, of all threads: low quartile, median, high
    peak: int  #: bytes: allocated on a GPU, resident on a CPU, the process itself included
    before: int  #: bytes of it that the process had held before there was a model
    budget: int  #: bytes that it may take, so that :data:`HEADROOM` of what was free stays free
    latency: tuple[float, float] | None  #: seconds of one image, p50 and p95
    singles: tuple[float, ...] = ()  #: seconds of each timed image, of which the latency is
    joules: float | None = None  #: of a batch; None where nobody counted


class OutOfMemory(MemoryError):
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
    facts: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in found.items()}
    return Speed(**facts)


def _with_ours() -> str:
    return os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


# ---- in the process -------------------------------------------------------------------------------------------------


def run_here(case: Case, *, bounded: bool = False, meter: Callable[[], float] | None = None) -> Speed:
    """Run a case in this process, which must do nothing else if its memory is to mean something.

    Args:
        bounded: the process is ended when it takes more than the budget. It then has to be one of its own.
        meter: says the joules so far; None counts none.

    Raises:
        OutOfMemory: if memory runs out, or the budget of a bounded process.
        ValueError: for an unknown model or device, or a run of another task.
    """
    import torch

    from visionzoo.inference.device import resolve_device
    from visionzoo.models.classifier import create_classifier  # noqa: F401  before memory is read
    from visionzoo.runs.memory import free_bytes, is_out_of_memory, peak_bytes, resident_bytes

    device = resolve_device(case.device)
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    on_cpu = device.type == "cpu"
    budget = int(free_bytes(str(device)) * (1 - HEADROOM)) + (resident_bytes(os.getpid()) if on_cpu else 0)
    if on_cpu and bounded:
        threading.Thread(target=_end_above, args=(budget,), daemon=True).start()
    torch.manual_seed(0)
    before = peak_bytes(str(device))
    try:
        model, size = _network(case)
        run, single = _steps(case, model.to(device), size, device)
        walls, cpus = _times(run, 3, case.rounds, device)
        joules = None if meter is None else _joules(run, meter, device)
        # one image last: the peak is that of the batch either way
        alone = _times(single, 3, max(20, 4 * case.rounds), device)[0] if case.latency else []
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(error).splitlines()[0]) from error
    peak = peak_bytes(str(device))
    if bounded and peak > budget:
        raise OutOfMemory(f"took {peak} bytes of {budget}")
    low, middle, high = _quartiles(walls)
    return Speed(
        image_size=size,
        params=sum(p.numel() for p in model.parameters()),
        seconds=middle,
        spread=(low, high),
        cpu=_quartiles(cpus),
        peak=peak,
        before=before,
        budget=budget,
        latency=(statistics.median(alone), statistics.quantiles(alone, n=20)[-1]) if alone else None,
        singles=tuple(alone),
        joules=joules,
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

    training = case.job == "training"
    mixed = case.precision == "bf16-mixed" or (training and case.precision == "bf16")
    dtype = torch.bfloat16 if case.precision == "bf16" and not mixed else torch.float32
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    images = torch.randn(case.batch, len(model.preprocess.mean), *size, device=device).to(dtype)
    model.train(training).to(dtype)
    if case.channels_last:
        model.to(memory_format=layout)
    network = torch.compile(model) if case.compile else model

    def call(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            return network(batch.contiguous(memory_format=layout))

    if not training:

        def infer(batch: torch.Tensor) -> object:
            with torch.inference_mode():
                return call(batch)

        return lambda: infer(images), lambda: infer(images[:1].contiguous())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(batch: torch.Tensor) -> None:
        labels = torch.zeros(len(batch), dtype=torch.long, device=device)
        F.cross_entropy(call(batch).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: step(images), lambda: step(images[:1])


def _times(run: Callable[[], object], warmup: int, rounds: int, device: Any) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each round."""
    import torch

    walls, cpus = [], []
    for i in range(warmup + rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= warmup:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return walls, cpus


def _joules(run: Callable[[], object], meter: Callable[[], float], device: Any) -> float:
    """Of one round, over :data:`ENERGY_SECONDS`."""
    rounds, start, before = 0, time.perf_counter(), meter()
    while rounds == 0 or time.perf_counter() - start < ENERGY_SECONDS:
        _times(run, 0, 1, device)
        rounds += 1
    return (meter() - before) / rounds


def _quartiles(times: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return low, middle, high


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
        _say(asdict(run_here(Case(**json.loads(text)), bounded=True)))
    except OutOfMemory as error:
        _say({"out_of_memory": str(error)})
    except (ValueError, OSError) as error:
        _say({"error": str(error)})


if __name__ == "__main__":
    main(sys.argv[1])
