"""Pictures of what a model does, drawn while it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.tasks.engine.disk import disk_may_fail
from visionzoo.tasks.engine.loggers import Events
from visionzoo.tasks.engine.results import PICTURES


class Sheets(Callback):
    """Every N optimizer steps let the task draw the same few held-out images, into ``sheets/`` and TensorBoard.

    Args:
        every_n_steps: optimizer steps between sheets; 0 draws none.
        images: images on a sheet.
        every_epoch: draw one at the end of every epoch as well.
    """

    def __init__(self, every_n_steps: int, images: int, *, every_epoch: bool = False) -> None:
        self.every_n_steps, self.images, self.every_epoch = every_n_steps, images, every_epoch
        self._batch: Any = None
        self._last_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw where a sheet is due."""
        step = trainer.global_step
        stepped, self._last_step = step != self._last_step, step
        if stepped and self.every_n_steps and step % self.every_n_steps == 0 and trainer.is_global_zero:
            self._draw(trainer, pl_module, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw at the end of an epoch, if asked to."""
        if self.every_epoch and trainer.is_global_zero:
            self._draw(trainer, pl_module, trainer.global_step)

    def _draw(self, trainer: Trainer, task: Any, step: int) -> None:
        if self._batch is None:
            self._batch = trainer.datamodule.sample_batch(self.images)  # type: ignore[attr-defined]
        if not len(self._batch.images):
            return
        out = task.run_folder.sheets / f"step_{step:07d}.png"
        training = task.training
        task.eval()
        with disk_may_fail(out.parent, PICTURES):
            task.draw_sheet(self._batch, out, title=f"step {step}")
            for logger in trainer.loggers:
                if isinstance(logger, Events):
                    picture = np.asarray(Image.open(out).convert("RGB"))
                    logger.experiment.add_image("sheet", picture, step, dataformats="HWC")
        task.train(training)
