"""The one look at the held-out images, and the pictures of what was seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer

from visionzoo.auto.recipes import reading_processes
from visionzoo.data.classify import ClassifyData
from visionzoo.metrics.calibration import calibration_error
from visionzoo.models.bundle import read_config
from visionzoo.runs import RunFolder
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.engine.assemble import run_files
from visionzoo.tasks.engine.quiet import quiet_lightning


@dataclass(frozen=True)
class FinalLook:
    """What the held-out images say."""

    accuracy: float  #: in [0, 1]
    images: int
    error: float | None  #: expected calibration error, with the temperature that the run has; None where it has none


def final_look(
    folder: RunFolder, data_options: dict[str, Any], batch: int, device: torch.device, *, seed: int
) -> FinalLook:
    """Score the model in a run folder on the held-out images, and draw what it gets wrong.

    Args:
        folder: of the run.
        data_options: of :class:`ClassifyData`: which images.
        batch: images at a time.
        device: where.
        seed: of what is held out where the data do not say, and for the record.
    """
    quiet_lightning()
    options = {**data_options, "seed": seed}
    data = ClassifyData(**options, batch_size=batch, num_workers=reading_processes())
    task = ClassifyTask(num_classes=data.num_classes, classes=data.classes, weights=str(folder.path))
    trainer = Trainer(
        accelerator={"cuda": "gpu", "cpu": "cpu", "mps": "mps"}[device.type],
        devices=[device.index or 0] if device.type == "cuda" else 1,
        logger=False,
        callbacks=run_files(data, folder, data_options=options, config=None, seed=seed, resume_command=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    trainer.validate(task, datamodule=data, verbose=False)
    results = task.results
    assert results is not None
    calibration, answers = read_config(folder.path).calibration, results.answers
    error = None
    if calibration is not None and answers is not None:
        error = calibration_error((answers.logits.double() / calibration.temperature).softmax(1), answers.labels)
    accuracy = float(trainer.callback_metrics["val/accuracy"])
    images = int(results.counts.sum()) if results.matrix is not None else 0
    return FinalLook(accuracy, images, None if error is None or math.isnan(error) else error)
