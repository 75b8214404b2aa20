"""Pictures, the line of results and the page of the run, at the end of training and of an evaluation."""

from __future__ import annotations

import math

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from visionzoo.files import write_json
from visionzoo.runs import RunFolder
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.checkpoint import Checkpoints
from visionzoo.tasks.engine.disk import disk_may_fail
from visionzoo.tasks.engine.interrupt import RunInterruptedError

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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the curves of a run that was stopped from outside, too."""
        if isinstance(exception, RunInterruptedError):
            self.draw_curves(trainer, pl_module)

    def draw_curves(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw ``curves.png`` from ``metrics.csv``."""
        from visionzoo import viz

        assert isinstance(pl_module, VisionTask)
        folder = pl_module.run_folder
        if trainer.is_global_zero and folder.metrics_csv.is_file():
            with disk_may_fail(folder.curves, PICTURES):
                viz.learning_curves(folder.metrics_csv, folder.curves)
        if trainer.is_global_zero and folder.record.is_file():
            draw_report(folder)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have what will be drawn kept, for ``validate``."""
        assert isinstance(pl_module, VisionTask)
        if trainer.state.fn == "validate":
            pl_module.begin_results()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have what will be drawn kept."""
        assert isinstance(pl_module, VisionTask)
        pl_module.begin_results()

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
        if not trainer.is_global_zero:
            return
        folder = pl_module.run_folder
        with disk_may_fail(folder.path, PICTURES):
            pl_module.draw_results(folder)
            if folder.record.is_file():  # else it is an evaluation before training: there is no run yet
                scores = {name: value for name, value in values.items() if math.isfinite(value)}
                which = next((c.which() for c in trainer.callbacks if isinstance(c, Checkpoints)), "")  # type: ignore[attr-defined]
                stage = prefix.rstrip("/")
                write_json(folder.results, {"stage": stage, "which": which, "line": self.line, "scores": scores})
                draw_report(folder)


def draw_report(folder: RunFolder) -> None:
    """Write ``report.html``. Whatever keeps it from being drawn is a warning: the run has ended well."""
    try:
        from visionzoo.report import write_report

        write_report(folder)
    except Exception as error:
        rank_zero_warn(
            f"could not draw {folder.report} ({type(error).__name__}: {error}); the run is whole, and "
            f"`visionzoo report {folder.path}` tries again"
        )
