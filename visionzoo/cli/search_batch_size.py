"""Measures training steps of growing size: ``python -m visionzoo.cli.search_batch_size TASK CONFIG OUT [MODULE...]``.

Each size is tried in a process of its own, forked from one that has everything imported, so that a kill for want of
memory ends nothing else.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionzoo.cli.batch_size import HEADROOM, Measured, choose, describe, last_line
from visionzoo.plugins import import_typed, load_installed

#: How often the memory of a process under measurement is looked at, in seconds.
WATCH = 0.01


class Search:
    """Measures steps of one configuration.

    Args:
        task: key of the command line's tasks.
        config: the content of ``config.yaml``.
        folder: for files; the caller removes it.
        imports: modules that each step imports first.
    """

    def __init__(self, task: str, config: dict[str, Any], folder: Path, imports: Sequence[str] = ()) -> None:
        self.task, self.folder, self.imports = task, folder, imports
        trainer = dict(config["trainer"])
        devices, nodes = trainer.get("devices"), int(trainer.get("num_nodes") or 1)
        self.on_node = _count(devices)
        self.processes = self.on_node * nodes
        one = dict.fromkeys(("callbacks", "profiler", "max_time", "min_steps", "min_epochs", "limit_train_batches"))
        one |= {"devices": [devices[0]] if isinstance(devices, list) else 1, "num_nodes": 1, "strategy": "auto"}
        one |= {"max_epochs": -1, "max_steps": 2, "limit_val_batches": 0, "logger": False, "fast_dev_run": False}
        one |= {"enable_checkpointing": False, "overfit_batches": 0.0}
        one |= {"accumulate_grad_batches": min(2, trainer.get("accumulate_grad_batches") or 1)}
        if trainer.get("accelerator") == "cpu":
            one["devices"] = 1
        self.config = {**config, "trainer": trainer | one, "early_stopping": 0, "save_every_n_steps": 0}
        self.context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
        if hasattr(os, "fork"):
            self.context.set_forkserver_preload(["visionzoo.cli.measured_step"])

    def measure(self, size: int) -> Measured:
        """One real step of ``size`` images.

        Raises:
            ValueError: when it fails for another reason than memory.
        """
        import yaml

        name = self.folder / f"step-{size}"
        config = {**self.config, "data": {**self.config["data"], "batch_size": size}}
        name.with_suffix(".yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        files = [str(name.with_suffix(end)) for end in (".yaml", ".json", ".log")]
        process = self.context.Process(
            target=_child, args=(self.imports, self.task, *files, size, self.on_node, self.processes)
        )
        process.start()
        self._watch(process, name.with_suffix(".json"))
        return self._read(process.exitcode, size, name)

    def _watch(self, process: Any, out: Path) -> None:
        """Wait for the end of a step, and end it where it takes more than it may, before it takes it from others."""
        from visionzoo.runs.memory import resident_bytes

        while process.is_alive():
            if out.is_file() and resident_bytes(process.pid) > json.loads(out.read_text()).get("kill_above", 2**63):
                process.kill()
            process.join(WATCH)

    def _read(self, code: int, size: int, name: Path) -> Measured:
        out, log = name.with_suffix(".json"), name.with_suffix(".log")
        found = json.loads(out.read_text()) if out.is_file() else {}
        if "budget" not in found or code not in (0, -signal.SIGKILL):
            text = log.read_text(errors="replace") if log.is_file() else ""
            raise ValueError(found.get("error") or f"the training step failed: {last_line(text)}")
        return Measured(size, found.get("peak", 0), found["budget"], max(1, found["images"] // self.processes))


def _count(devices: Any) -> int:
    """Processes on this machine, of ``trainer.devices``; "auto" and -1 are every GPU there is, or one process."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    if text.isdigit():
        return int(text)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    import torch

    # through NVML, which leaves processes that are forked later able to use the GPUs
    return max(1, torch.cuda.device_count())


def _child(
    imports: Sequence[str], task: str, config: str, out: str, log: str, size: int, on_node: int, processes: int
) -> None:
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from visionzoo.cli.measured_step import measure_step

    for name in imports:
        import_typed(name)
    load_installed()
    with contextlib.suppress(OSError):  # if the system must end somebody, then this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    measure_step(task, config, Path(out), size, on_node=on_node, processes=processes, headroom=HEADROOM)
    sys.stdout.flush()
    os._exit(0)


def main(task: str, config: str, out: str, *imports: str) -> None:
    """Search in this process; write ``size`` and ``line``, or ``error``, to ``out`` as JSON."""
    import yaml

    started = time.monotonic()
    search: Search | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="visionzoo-steps-") as folder:
            search = Search(task, yaml.safe_load(Path(config).read_text(encoding="utf-8")), Path(folder), imports)
            chosen, too_large = choose(search.measure)
        line = describe(chosen, too_large, search.processes)
        found: dict[str, Any] = {"size": chosen.size, "line": f"{line} ({time.monotonic() - started:.0f} s)"}
    except ValueError as error:
        found = {"error": str(error)}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
