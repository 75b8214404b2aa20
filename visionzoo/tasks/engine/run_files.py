"""The run folder of a training run: who makes it, and what goes into it first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.files import remove_leftovers, write_text
from visionzoo.models.carried import carry
from visionzoo.runs import RunFolder, amend_record, describe_run, write_record
from visionzoo.runs.lineage import Ancestor, lineage_of, lineage_of_run
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.disk import disk_may_fail
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
        self._since = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell every rank the run folder."""
        assert isinstance(pl_module, VisionTask)
        path: Any = trainer.strategy.broadcast(None if self.folder is None else str(self.folder.path))
        self.folder = pl_module.run_folder = RunFolder(path)

    # Not before this: a run that is resumed with options that it cannot go on with must stay as it is, and a command
    # that is refused leaves nothing behind. Whatever can be refused has been by now.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write configuration and record, and drop metrics of steps that are done again."""
        self._write(trainer, [asdict(ancestor) for ancestor in self._ancestors(trainer, pl_module)])
        if trainer.is_global_zero:
            assert self.folder is not None
            with self._or_say_where():  # what it needs beside its weights may be gone when it goes on
                carry(getattr(getattr(pl_module, "model", None), "architecture", {}), self.folder.path)
        self._since = time.monotonic()
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                with self._or_say_where():
                    logger.forget_after(trainer.global_step)
            elif isinstance(logger, Events):
                logger.open()

    def _ancestors(self, trainer: Trainer, pl_module: LightningModule) -> Iterable[Ancestor]:
        """What the run began with; of one that goes on, as it said then, since that may be gone."""
        assert self.folder is not None
        known = lineage_of_run(self.folder) if trainer.ckpt_path else None
        return lineage_of(started_from(pl_module)) if known is None else known

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write down how long it took until it was stopped; what was refused before it began is no session."""
        if trainer.state.fn == "fit" and self._written:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down how long it took."""
        if trainer.is_global_zero:
            assert self.folder is not None
            with disk_may_fail(self.folder.record, "the earlier one stays, which does not say how long the run took"):
                amend_record(self.folder, minutes=round((time.monotonic() - self._since) / 60, 2))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record, for ``validate``."""
        if trainer.state.fn == "validate" and self.config is None:  # not the scores before a fit
            self._write(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record."""
        self._write(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record."""
        self._write(trainer)

    def _write(self, trainer: Trainer, ancestors: list[dict[str, Any]] | None = None) -> None:
        if self._written or not trainer.is_global_zero:
            return
        self._written = True
        assert self.folder is not None
        record = describe_run(seed=self.seed, data=_describe_data(trainer), ancestors=ancestors)
        with self._or_say_where():
            self.folder.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder.path)  # of saves that a kill broke off; each is as large as a checkpoint
            if self.config is not None:
                write_text(self.folder.config_yaml, self.config)
            write_record(self.folder, record)

    @contextmanager
    def _or_say_where(self) -> Iterator[None]:
        """A run that cannot write at its start ends there."""
        assert self.folder is not None
        try:
            yield
        except OSError as error:
            raise OSError(f"cannot write to the run folder {self.folder.path} ({error.strerror or error})") from error


def _describe_data(trainer: Trainer) -> dict[str, Any] | None:
    """What identifies the data: the path as it was typed and a fingerprint."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is None:
        return None
    return {"path": str(datamodule.path), "fingerprint": datamodule.fingerprint()}


def started_from(module: LightningModule) -> list[str | None]:
    """The weights that a task was told to begin with."""
    return [module.hparams.get(option) for option in ("weights", "image_weights", "backbone_weights")]
