"""A tiny training run that the tests of the engine share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from visionzoo.data.classify import ClassifyData
from visionzoo.runs import RunFolder
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.engine.checkpoint import AtomicCheckpointIO, Checkpoints
from visionzoo.tasks.engine.ema import EMA
from visionzoo.tasks.engine.loggers import MetricsFile
from visionzoo.tasks.engine.run_files import RunFiles
from visionzoo.tasks.engine.seeding import SeedBatches
from visionzoo.tasks.interface import LossPart

#: 96 digits in batches of 16: six steps an epoch.
STEPS = 6


@dataclass
class Run:
    """A finished (or broken-off) training."""

    task: ClassifyTask
    trainer: pl.Trainer
    folder: RunFolder
    losses: dict[int, float]  #: by optimizer step

    def weights(self) -> dict[str, torch.Tensor]:
        return {k: v.detach().clone() for k, v in self.task.state_dict().items()}


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.seen[trainer.global_step] = float(outputs["loss"])


def fit_quietly(
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    folder: Path,
    resume: Path | None = None,
    *,
    callbacks: Sequence[pl.Callback] = (),
    every_n_steps: int = 0,
    **trainer: Any,
) -> pl.Trainer:
    """Two epochs of any task on the CPU, with what the engine writes into ``folder`` and no word."""
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "plugins": [AtomicCheckpointIO()],
        "callbacks": [RunFiles(RunFolder(folder)), SeedBatches(0), *callbacks, Checkpoints(every_n_steps)],
        "logger": False,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    loop = pl.Trainer(**{**options, **trainer})
    loop.fit(module, datamodule=datamodule, ckpt_path=resume)
    return loop


def tiny_task(**options: Any) -> ClassifyTask:
    defaults: dict[str, Any] = {"backbone": "vit_nano_patch4_32", "image_size": 16, "num_classes": 10, "lr": 1e-3}
    torch.manual_seed(0)
    return ClassifyTask(**{**defaults, **options})


def tiny_data(**options: Any) -> ClassifyData:
    defaults: dict[str, Any] = {"batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "train_limit": 96}
    return ClassifyData("digits", **{**defaults, **options})


def take(task: VisionTask, batch: Any, size: int | None = None) -> LossPart:
    """What a training batch comes to, with the gradient of every part run backward; no Trainer is needed."""
    losses: list[torch.Tensor] = []
    logs: dict[str, list[torch.Tensor]] = {}
    for part in task.loss_parts(batch, size):
        losses.append((part.loss if part.value is None else part.value).detach())
        for name, value in part.logs.items():
            logs.setdefault(name, []).append(value.detach())
        if part.loss.requires_grad:
            part.loss.backward(part.gradient)
    assert part.last
    summed = {name: torch.stack(values).sum() for name, values in logs.items()}
    return LossPart(torch.stack(losses).sum(), summed, task.images_in(batch))


def run_training(
    root: Path,
    name: str = "run",
    *,
    epochs: int = 2,
    resume: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    every_n_steps: int = 0,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    folder, task, losses = RunFolder(root / name), tiny_task(**options), Losses()
    averages = [EMA(task.ema_decay)] if task.ema_decay else []
    loop = pl.Trainer(
        **{
            "max_epochs": epochs,
            "accelerator": "cpu",
            "logger": MetricsFile(folder.metrics_csv),
            "plugins": [AtomicCheckpointIO()],
            "callbacks": [
                RunFiles(folder), SeedBatches(0), *averages, losses, *callbacks, Checkpoints(every_n_steps),
            ],
            "log_every_n_steps": 1,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **(trainer or {}),
        }
    )  # fmt: skip
    run = Run(task, loop, folder, losses.seen)
    loop.fit(task, datamodule=tiny_data(**(data or {})), ckpt_path=resume)
    return run


class Kill(pl.Callback):
    """Break off after optimizer step ``step``, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


class Killed(Exception):
    pass
