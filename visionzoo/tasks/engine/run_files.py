"""The run folder of a training run: who makes it, and what goes into it first."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.files import remove_leftovers, write_text
from visionzoo.runs import RunFolder, describe_run, write_record
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.loggers import Events, MetricsFile


class RunFiles(Callback):
    """Tell the task its run folder on every rank; rank 0 writes ``config.yaml`` and the record of what is run.

    Args:
        folder: the run folder; None on ranks other than 0, which hear of it from rank 0.
        config: the text of ``config.yaml``; None writes none.
        seed: for the record.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        config: str | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        self.folder, self.config, self.seed = folder, config, seed
        self._written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, VisionTask)
        path: Any = trainer.strategy.broadcast(None if self.folder is None else str(self.folder.path))
        self.folder = pl_module.run_folder = RunFolder(path)

    # Not before this: a run that is resumed with options that it cannot go on with must stay as it is, and a command
    # that is refused leaves nothing behind. Whatever can be refused has been by now.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.forget_after(trainer.global_step)
            elif isinstance(logger, Events):
                logger.open()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate" and self.config is None:  # not the scores before a fit
            self._write(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if self._written or not trainer.is_global_zero:
            return
        self._written = True
        assert self.folder is not None
        self.folder.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder.path)  # of saves that a kill broke off; each is as large as a checkpoint
        if self.config is not None:
            write_text(self.folder.config_yaml, self.config)
        write_record(self.folder, describe_run(seed=self.seed, data=_describe_data(trainer)))


def _describe_data(trainer: Trainer) -> dict[str, Any] | None:
    """What identifies the data: the path as it was typed and a fingerprint."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is None:
        return None
    return {"path": str(datamodule.path), "fingerprint": datamodule.fingerprint()}
