"""One real training step, measured: what a process of the search for a batch size does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from visionzoo.cli.train import TrainCLI
from visionzoo.data.module import VisionData
from visionzoo.files import write_text
from visionzoo.runs import RunFolder
from visionzoo.runs.memory import free_bytes, is_out_of_memory, mapped_file_bytes, peak_bytes
from visionzoo.tasks.engine.ema import EMA
from visionzoo.tasks.engine.quiet import quiet_lightning
from visionzoo.tasks.engine.seeding import SeedBatches

#: Samples that are looked at for the largest one.
LOOKED_AT = 16
#: Batches that a loader's worker has ready.
PREFETCHED = 2
#: A process that holds this much more than it may is ended.
TOO_MUCH = 1.05


class StepCLI(TrainCLI):
    """The same run, for two optimizer steps on one batch of real samples, leaving nothing behind.

    Args:
        out: where the facts are written.
        size: images in the batch.
        on_node: processes of the run that share this machine's main memory.
        processes: of the whole run.
        headroom: share of what is free that must stay so.
    """

    def __init__(
        self, task: str, config: str, out: Path, size: int, on_node: int, processes: int, headroom: float
    ) -> None:
        self.out, self.size, self.on_node, self.processes, self.headroom = out, size, on_node, processes, headroom
        self.facts: dict[str, Any] = {}
        super().__init__(task, "fit", ["--config", config], "")

    def _make_folder(self) -> RunFolder:
        return RunFolder(self.out.parent)

    def _callbacks(self, bar: bool) -> list[Callback]:
        return [c for c in super()._callbacks(bar) if isinstance(c, (SeedBatches, EMA))]

    def before_fit(self) -> None:
        """Say what memory there is, and put one batch of the largest samples in the place of the data."""
        self._tell_budget()
        self.model.warmup_steps, self.model.warmup_epochs = 0, 0.0  # may be longer than two steps
        self.model.halve_on_oom = False
        data, size = self.datamodule, self.size

        def no_loader() -> list[Any]:
            return []

        def loader() -> DataLoader[Any]:
            data.setup("fit")
            batch = largest_batch(data, min(size, len(data.train_source)))
            self.facts["batch"] = _bytes(batch)
            return DataLoader([batch] * (2 * self.trainer.accumulate_grad_batches), batch_size=None)  # type: ignore[arg-type]

        data.train_dataloader, data.val_dataloader = loader, no_loader

    def _device(self) -> str:
        return str(self.trainer.strategy.root_device)

    def _tell_budget(self) -> None:
        device = self._device()
        budget = int(free_bytes(device) * (1 - self.headroom))
        if device.startswith("cuda"):
            # within this a step must do, and torch gives back what it only keeps before it gives up
            total = torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total))
        else:
            budget //= self.on_node
            self.facts["kill_above"] = int(budget * TOO_MUCH)
        self._tell(budget=budget, images=len(self.datamodule.train_source or ()))

    def after_fit(self) -> None:
        """Say what the step took, with what the real run holds besides."""
        device = self._device()
        gradients = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        exchange = gradients if self.processes > 1 else 0  # what gradients are put into to be sent
        if device.startswith("cuda"):
            self._tell(peak=torch.cuda.max_memory_reserved() + exchange)
            return
        workers = self.datamodule.num_workers * PREFETCHED * self.facts["batch"]
        # the run will hold what the process that this one was forked from holds of libraries
        libraries = max(0, mapped_file_bytes(os.getppid()) - mapped_file_bytes(os.getpid()))
        self._tell(peak=peak_bytes() + libraries + exchange + workers)

    def _tell(self, **facts: Any) -> None:
        self.facts |= facts
        write_text(self.out, json.dumps(self.facts))


def largest_batch(data: VisionData, size: int) -> Any:
    """A training batch that holds the largest of some samples ``size`` times."""
    source = data.train_source
    assert source is not None
    dataset, collate = data.training_set(source)
    places = np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).round().astype(int)
    samples = [dataset[(0, int(i))] for i in places]
    largest = max(samples, key=lambda sample: _bytes(collate([sample])))
    return collate([largest] * size)


def _bytes(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    return sum(map(_bytes, batch)) if isinstance(batch, tuple) else 0  # views lie in a tuple of their own


def measure_step(
    task: str, config: str, out: Path, size: int, *, on_node: int, processes: int, headroom: float
) -> None:
    """Take two steps and write ``budget``, ``images`` and ``peak`` to ``out``; no peak where memory ran out, and
    ``error`` where something else went wrong.
    """
    quiet_lightning()
    try:
        StepCLI(task, config, out, size, on_node, processes, headroom)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            write_text(out, json.dumps({"error": str(error)}))
