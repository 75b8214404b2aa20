"""What the benchmarks share: interleaved timing, the machine's matrix peak, memory, and a record of where it ran.

A claim of this project is a ratio, measured in one process on one machine: A B A B ... after warm-up, medians with
their quartiles. Wall time is what a user waits for. CPU time is beside it: on a machine that others use too it hardly
changes, provided that one thread runs (more threads spin while they wait, and that counts).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from visionzoo.files import write_json
from visionzoo.macs import count_macs
from visionzoo.runs.memory import is_out_of_memory
from visionzoo.runs.record import git_state, versions

RESULTS = Path(__file__).resolve().parent / "results"


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@dataclass
class Timing:
    """Seconds of each round of one case."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Median and quartiles in seconds."""
        return {
            name: dict(zip(("low", "median", "high"), _quartiles(values), strict=True))
            for name, values in (("wall", self.wall), ("cpu", self.cpu))
        }


def interleave(
    cases: dict[str, Callable[[], Any]], *, rounds: int, warmup: int, device: str = "cpu"
) -> dict[str, Timing]:
    """Run the cases in turn, ``warmup`` times untimed and ``rounds`` times timed."""
    timings = {name: Timing() for name in cases}
    for i in range(warmup + rounds):
        for name, run in cases.items():
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            synchronize(device)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if i >= warmup:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as fast ours is: median and quartiles over rounds, each compared with its neighbour."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return dict(zip(("low", "median", "high"), _quartiles(ratios), strict=True))


def matmul_peak(dtype: torch.dtype, device: str = "cpu", *, size: int = 0, clock: str = "wall") -> float:
    """Floating-point operations a second of the best of several square matrix products, by wall or CPU time."""
    size = size or (8192 if device.startswith("cuda") else 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    now = time.process_time if clock == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(30):
        synchronize(device)
        start = now()
        torch.mm(a, b)
        synchronize(device)
        best = min(best, now() - start)
    return 2 * size**3 / best


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in ``run``, attention included."""
    return 2 * count_macs(run)


def clock_of(device: str) -> str:
    """Which time a ratio is read from: CPU time of one thread is hardly disturbed by other programs."""
    return "cpu" if device == "cpu" and torch.get_num_threads() == 1 else "wall"


def those_that_fit(cases: dict[str, Callable[[], Any]], absent: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """Run each case once. One that runs out of memory is left out, and ``absent`` says so."""
    fitting = {}
    for name, run in cases.items():
        try:
            run()
            fitting[name] = run
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            absent[name] = "out of memory"
            print(f"{name} is left out: out of memory")
    return fitting


def command_line() -> str:
    """What was typed, without the folders that only this machine has."""
    words = [w if not os.path.isabs(w) else f".../{os.path.basename(w.rstrip('/'))}" for w in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{os.path.basename(sys.argv[0])}", *words])


def machine(device: str = "cpu", packages: Sequence[str] = ()) -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    record = {
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d"),
        "git": git_state(),
        "versions": versions() | {name: _version(name) for name in packages},
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    if device.startswith("cuda"):
        record["gpu"] = torch.cuda.get_device_name()
    return record


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def compare_cases(
    title: str,
    cases: dict[str, Callable[[], Any]],
    reference: str | None,
    *,
    rounds: int,
    warmup: int,
    device: str = "cpu",
    flops: dict[str, int] | None = None,
    peak: float = 0.0,
    held: dict[str, float] | None = None,
    units: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Time cases in turn, print them as a table, and give the record of them.

    Args:
        title: printed above the table.
        cases: what to time.
        reference: the case that the others are compared with; None, or a case that is absent, for the fastest other
            than the first, by median.
        rounds, warmup, device: see :func:`interleave`.
        flops: floating-point operations of a case, for the share of the machine's peak; not every case needs any.
        peak: that peak, in operations a second.
        held: peak GiB of a case.
        units: how many images (or the like) one call of a case handles, for the rate.
    """
    clock = clock_of(device)
    counted = flops or {}
    timings = interleave(cases, rounds=rounds, warmup=warmup, device=device)
    medians = {name: t.summary()[clock]["median"] for name, t in timings.items()}
    others = list(cases)[1:]
    if reference not in cases:
        reference = min(others, key=medians.__getitem__) if others else next(iter(cases))
    rows, results = [], {}
    for name, timing in timings.items():
        summary = timing.summary()
        ratio = {c: speedup(getattr(timing, c), getattr(timings[reference], c)) for c in ("wall", "cpu")}
        share = counted[name] / medians[name] / peak if name in counted and peak else None
        results[name] = {
            "seconds": summary,
            "speedup": ratio,
            "gflop": counted[name] / 1e9 if name in counted else None,
            "share_of_peak": share,
            "peak_gib": (held or {}).get(name),
            "per_second": units[name] / medians[name] if units else None,
        }
        rows.append(
            [
                name,
                *(
                    f"{summary[c]['median']:.3f} ({summary[c]['low']:.3f}-{summary[c]['high']:.3f})"
                    for c in ("wall", "cpu")
                ),
                *(f"{ratio[c]['median']:.2f} ({ratio[c]['low']:.2f}-{ratio[c]['high']:.2f})" for c in ("wall", "cpu")),
                "-" if share is None else f"{share:.0%}",
                f"{held[name]:.2f}" if held and name in held else "-",
            ]
        )
    print(f"\n{title}; compared with {reference}, by {clock} time")
    print(table(["case", "wall s", "cpu s", "times as fast, wall", "cpu", "of peak", "peak GiB"], rows))
    return {"matmul_peak": peak, "clock": clock, "reference": reference, "cases": results}


def in_fresh_process(script: str, *args: str) -> dict[str, Any]:
    """Run ``script`` with ``args`` in a process of its own and read the JSON on the last line that it prints.

    Peak memory is only known of a whole process, so each case needs one.

    Raises:
        RuntimeError: if it fails; with the end of what it said.
    """
    done = subprocess.run([sys.executable, script, *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{script} {' '.join(args)} failed: {done.stderr.strip()[-1000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under a header, in aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _without_out(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts that may be published: where the file was written says a machine's folders, and nothing of the rows."""
    return {k: _without_out(v) if k == "arguments" else v for k, v in facts.items() if k != "out"}


class Record:
    """A benchmark's record on the disk, written row by row: the same command goes on where it was interrupted.

    Args:
        name: of the file, ``benchmarks/results/NAME.json``, unless ``out`` names another.
        facts: what is written beside the rows; ``machine`` is one of them.
        out: the file.
    """

    def __init__(self, name: str, facts: dict[str, Any], out: str | None = None) -> None:
        self.path = Path(out) if out else RESULTS / f"{name}.json"
        self.value: dict[str, Any] = {**_without_out(facts), "results": {}, "unfinished": True}
        if self.path.is_file():
            before = json.loads(self.path.read_text())
            # Rows of another command, or of other code, belong to another table.
            if before.get("unfinished") and _origin(before) == _origin(self.value):
                self.value["results"] = before["results"]

    def row(self, key: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row and write it, unless an interrupted run of this command has.

        A row that runs out of memory as a whole, before its cases are timed one by one, says so and is kept too.
        """
        if key in self.value["results"]:
            print(f"{key}: kept from the interrupted run")
            return
        try:
            self.value["results"][key] = measure()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"{key}: out of memory")
            self.value["results"][key] = {"cases": {}, "absent": {"every case": "out of memory"}}
        write_json(self.path, self.value)

    def finish(self) -> None:
        """Every row is there; the next command begins anew."""
        del self.value["unfinished"]
        write_json(self.path, self.value)
        print(f"\nwritten to {self.path}")


def _origin(record: dict[str, Any]) -> tuple[Any, ...]:
    machine = record["machine"]
    return machine["command"], machine["git"], machine["versions"], machine["cpu"], machine.get("gpu")
