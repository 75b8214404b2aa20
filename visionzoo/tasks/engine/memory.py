"""How much memory a training step takes, said after the first one."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.runs.memory import peak_bytes
from visionzoo.terminal import say


class PeakMemory(Callback):
    """Print the peak memory once the first optimizer step is done: of the device, or of this process on a CPU."""

    def __init__(self) -> None:
        self._said = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first step, say what it took."""
        if self._said or trainer.global_step == 0:
            return
        self._said = True
        if trainer.is_global_zero:
            say(f"peak memory after the first step: {peak_bytes(str(pl_module.device)) / 2**30:.2f} GiB", flush=True)
