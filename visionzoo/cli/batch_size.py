"""``--data.batch_size auto``: the largest batch whose real training step leaves some memory free.

What is chosen from which measurements; ``search_batch_size.py`` measures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

#: Share of the free memory that stays free: for validation, fragments, and batches larger than those that were tried.
HEADROOM = 0.15
#: The first size that is tried.
START = 8


class Measured(NamedTuple):
    """What a step took."""

    size: int  #: images
    peak: int  #: bytes; 0 where it was broken off
    budget: int  #: bytes that it may take
    images: int  #: training images of one process; no batch is larger

    @property
    def fits(self) -> bool:
        """Whether the step was not broken off, and stayed within the budget."""
        return 0 < self.peak <= self.budget


def choose(measure: Callable[[int], Measured], start: int = START) -> tuple[Measured, Measured | None]:
    """The largest size that fits, doubling and then halving the gap down to an eighth; and the least that did not.

    Raises:
        ValueError: when a single image does not fit.
    """
    last = measure(start)
    limit, too_large = last.images, None
    if last.size > limit:
        last = measure(limit)
    while not last.fits:
        if last.size == 1:
            raise ValueError(
                f"a training step of one image does not fit into the {gib(last.budget)} GiB that may be used; take a "
                "smaller model or image_size, --model.grad_checkpointing true, or --trainer.precision bf16-mixed"
            )
        too_large, last = last, measure(max(1, last.size // 2))
    while too_large is None and last.size < limit:
        larger = measure(min(2 * last.size, limit))
        if larger.fits:
            last = larger
        else:
            too_large = larger
    while too_large is not None and (middle := _between(last.size, too_large.size)) is not None:
        tried = measure(middle)
        if tried.fits:
            last = tried
        else:
            too_large = tried
    return last, too_large


def _between(low: int, high: int) -> int | None:
    """A size in the middle, a multiple of 8 where there is one; None where the gap is small enough."""
    if high - low <= max(1, low // 8):
        return None
    middle = (low + high) // 2
    rounded = middle // 8 * 8
    return rounded if low < rounded < high else middle


def gib(size: int) -> str:
    """Bytes -> GiB with two decimals."""
    return f"{size / 2**30:.2f}"


def describe(chosen: Measured, too_large: Measured | None, processes: int) -> str:
    """One line: what was measured and chosen."""
    why = f"{too_large.size} took more" if too_large is not None else "all training images"
    of = " per process" if processes > 1 else ""
    return (
        f"batch size {chosen.size}{of}: its training step took {gib(chosen.peak)} GiB of the {gib(chosen.budget)} "
        f"that may be used ({1 - HEADROOM:.0%} of what is free); {why}"
    )


# ---- in the run ---------------------------------------------------------------------------------------------------

#: What launchers set. A step is measured in a single process.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR")
LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "OMPI_", "PMI_")


def find_batch_size(task: str, config: str, imports: Sequence[str] = ()) -> tuple[int, str]:
    """The batch size for a task and the text of its ``config.yaml``, and the line that says what was measured.
    ``imports`` are the modules that the user typed.

    Raises:
        ValueError: when one image does not fit, or the step fails for another reason.
    """
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHED and not k.startswith(LAUNCHERS)}
    ours = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([ours, os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="visionzoo-measure-") as folder:
        given, out = Path(folder) / "config.yaml", Path(folder) / "found.json"
        given.write_text(config, encoding="utf-8")
        command = [sys.executable, "-m", "visionzoo.cli.search_batch_size", task, str(given), str(out), *imports]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if not out.is_file():
            raise ValueError(f"the batch size could not be measured: {last_line(ended.stderr)}")
        found = json.loads(out.read_text())
    if "error" in found:
        raise ValueError(found["error"])
    return found["size"], found["line"]


def last_line(text: str) -> str:
    """What a process said last."""
    return (text.strip().splitlines() or ["it ended without a word"])[-1]
