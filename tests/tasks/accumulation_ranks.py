"""Gradients of the steps of a tiny run, here and on each of some processes: ``torchrun accumulation_ranks.py OUT``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tiny_run import tiny_data, tiny_task
from torch import Tensor

from visionzoo.tasks.engine.seeding import SeedBatches


class Gradients(pl.Callback):
    """What each optimizer step is taken with."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        grads = [p.grad.flatten() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self.seen.append(torch.cat(grads).double().clone())


def gradients(module: Any, data: Any, accumulate: int = 1, **trainer: Any) -> list[Tensor]:
    """Of every optimizer step of one epoch, with weights that do not move."""
    spy = Gradients()
    module.lr, module.base_lr, module.weight_decay = 1e-30, None, 0.0
    loop = pl.Trainer(
        max_epochs=1, accelerator="cpu", accumulate_grad_batches=accumulate, callbacks=[SeedBatches(0), spy],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, use_distributed_sampler=False, **trainer,
    )  # fmt: skip
    ours = isinstance(data, pl.LightningDataModule)
    loop.fit(module, None if ours else data, datamodule=data if ours else None)
    return spy.seen


def uneven(processes: int, **options: Any) -> list[Tensor]:
    """Five batches of 8 and one of 4, over so many processes, four batches a step."""
    data = tiny_data(
        batch_size=8 // processes, train_limit=44, drop_last=False, crop="resize", hflip=0.0, policy="none"
    )
    shared = {"devices": processes, "strategy": options.get("strategy", "auto"), "precision": "64-true"}
    task = tiny_task()
    task.halve_on_oom = options.get("halve_on_oom", True)
    return gradients(task, data, 4, **shared)


def main() -> None:
    processes = int(os.environ["WORLD_SIZE"])
    found = [uneven(processes, strategy="ddp"), uneven(processes, strategy="ddp", halve_on_oom=False)]
    torch.save(found, Path(sys.argv[1]) / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
