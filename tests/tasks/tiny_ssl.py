"""Tiny runs of pretraining on views, which several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tiny_run import fit_quietly

from visionzoo.data.ssl import SslData
from visionzoo.tasks.ssl import SslTask

SMALL: dict[str, Any] = {
    "backbone": "vit_nano_patch4_32",
    "image_size": 8,
    "hidden": 32,
    "out": 32,
    "lr": 2e-3,
    "watch_every_n_steps": 0,
}
#: Options of task and data of every method.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "simclr": ({"method": "simclr"}, {"recipe": "simclr"}),
    "moco": ({"method": "moco", "momentum": 0.9}, {}),
    "queue": ({"method": "moco", "momentum": 0.9, "queue": 256}, {}),
    "dino": (
        {
            "method": "dino",
            "momentum": 0.9,
            "teacher_temperature": 0.07,
            "warmup_teacher_epochs": 1.5,
            "freeze_last_epochs": 0.5,
        },
        {"small_views": 2, "small_size": 4},
    ),
    "ibot": (
        {"method": "dino", "momentum": 0.9, "patch_loss_weight": 1.0, "patch_out": 16, "image_size": 16},
        {"small_views": 1, "small_size": 8, "mask_probability": 0.75},
    ),
}


def ssl_task(case: str = "simclr", **options: Any) -> SslTask:
    torch.manual_seed(0)
    return SslTask(**{**SMALL, **CASES[case][0], **options})


def ssl_data(case: str = "simclr", **options: Any) -> SslData:
    given = {"batch_size": 32, "num_workers": 0, "train_limit": 128, "eval_batch_size": 128}
    return SslData("digits", **{**given, **CASES[case][1], **options})


def fit_ssl(
    case: str, folder: Path, resume: Path | None = None, *, task: dict[str, Any] | None = None, **trainer: Any
) -> tuple[SslTask, pl.Trainer]:
    module, batch_size = ssl_task(case, **(task or {})), trainer.pop("batch_size", 32)
    data = ssl_data(case, batch_size=batch_size)
    return module, fit_quietly(module, data, folder, resume, **{"limit_val_batches": 1, **trainer})
