"""The batch size that rank 0 measured, on every rank."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class ShareBatchSize(Callback):
    """Give every rank the batch size of rank 0, which alone measures it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Every rank takes the size that rank 0 has measured."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and trainer.world_size > 1:
            data.use_batch_size(trainer.strategy.broadcast(data.batch_size))
