"""Pictures and the line of results at the end of an evaluation."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.disk import disk_may_fail

#: What a picture that cannot be written means.
PICTURES = "the numbers and the checkpoints are not affected"


class Results(Callback):
    """Draw what the task has to show after ``validate`` and ``test``, and the learning curves after ``fit``."""

    def __init__(self) -> None:
        self.line = ""  #: the last evaluation in one line
        self.trained = False  #: whether there was a step left to train

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Know that there was something left to train."""
        self.trained = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves."""
        self.draw_curves(trainer, pl_module)

    def draw_curves(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw ``curves.png`` from ``metrics.csv``."""
        from visionzoo import viz

        assert isinstance(pl_module, VisionTask)
        folder = pl_module.run_folder
        if trainer.is_global_zero and folder.metrics_csv.is_file():
            with disk_may_fail(folder.curves, PICTURES):
                viz.learning_curves(folder.metrics_csv, folder.curves)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and sum up, for ``validate``."""
        if trainer.state.fn == "validate":
            self._show(trainer, pl_module, "val/")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and sum up."""
        self._show(trainer, pl_module, "test/")

    def _show(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        assert isinstance(pl_module, VisionTask)
        values = {k.removeprefix(prefix): float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        self.line = pl_module.summary(values)
        if trainer.is_global_zero:
            with disk_may_fail(pl_module.run_folder.path, PICTURES):
                pl_module.draw_results(pl_module.run_folder)
