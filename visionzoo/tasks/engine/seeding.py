"""Random numbers as a pure function of where the run is, so that a resumed run draws what the first one would have."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.data.keys import sample_key


class SeedBatches(Callback):
    """Seed torch (CPU and GPU) before every training batch from (seed, epoch, batch, rank).

    Drop path, dropout, mixup and whatever else draws from torch's default generators then needs no stored state.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch from (seed, epoch, batch, rank)."""
        seed = sample_key(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        if trainer.strategy.root_device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond to tell an absent GPU
        else:
            torch.manual_seed(seed)
