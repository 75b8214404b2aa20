"""The run folder of a training run: who makes it, and what goes into it first."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.files import remove_leftovers, write_text
from visionzoo.runs import RunFolder, describe_run, write_record
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.loggers import MetricsFile


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
        if trainer.is_global_zero and not self._written:
            self._written = True
            self.folder.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder.path)  # of saves that a kill broke off; each is as large as a checkpoint
            if self.config is not None:
                write_text(self.folder.config_yaml, self.config)
            write_record(self.folder, describe_run(seed=self.seed, data=_describe_data(trainer)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.forget_after(trainer.global_step)


def _describe_data(trainer: Trainer) -> dict[str, Any] | None:
    """What identifies the data: the path as it was typed and a fingerprint."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is None:
        return None
    return {"path": str(datamodule.path), "fingerprint": datamodule.fingerprint()}
