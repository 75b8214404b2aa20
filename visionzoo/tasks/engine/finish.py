"""What a run writes after its last step, for one that was killed before it had."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from pytorch_lightning import Trainer

from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.checkpoint import Checkpoints
from visionzoo.tasks.engine.ema import EMA
from visionzoo.tasks.engine.loggers import MetricsFile
from visionzoo.tasks.engine.results import Results


def held_out_scores(trainer: Trainer, task: VisionTask, data: Any) -> dict[str, float]:
    """What ``trainer.validate`` logs, such as ``val/loss``, of the task as it is; without a trace in the loggers."""
    loggers, trainer.loggers = trainer.loggers, []
    found = trainer.validate(task, datamodule=data, verbose=False)
    trainer.loggers = loggers
    return {name: value for part in found for name, value in part.items()}


def make_up(trainer: Trainer, task: VisionTask, data: Any, *, validates: bool) -> None:
    """Judge the last weights, export and draw the curves, as far as the run has not; call it on every rank.

    Args:
        trainer: has loaded the last checkpoint, and found nothing left to train.
        task: its task.
        data: its data module.
        validates: whether there is anything to judge the weights by.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    checkpoints = next(c for c in callbacks if isinstance(c, Checkpoints))
    checkpoints.recall_best(trainer, task)
    judged = not validates or checkpoints.judged == trainer.global_step
    if not judged:
        epoch = data.start[0] + (data.start[1] > 0)  # one that was broken off counts, once a run is over
        average = next((c for c in callbacks if isinstance(c, EMA)), None)
        with nullcontext() if average is None else average.averaged(task):
            scores = held_out_scores(trainer, task, data)
            checkpoints.judge_last(trainer, task, scores, epoch)
        _log(trainer, {"epoch": epoch - 1, **scores})
    # asked once for all: a rank that looked later would find what another has just written
    if trainer.strategy.broadcast(not task.run_folder.model.is_file()):
        checkpoints.export_last(trainer, task)
    if not judged or not task.run_folder.curves.is_file():
        next(c for c in callbacks if isinstance(c, Results)).draw_curves(trainer, task)


def _log(trainer: Trainer, scores: dict[str, float]) -> None:
    """The row that a validation at the end of training leaves in ``metrics.csv``."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.log_metrics(scores, step=trainer.global_step - 1)
