"""Checkpoints that are whole or absent: ``last.ckpt`` and ``best.ckpt`` in the run folder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from visionzoo.files import atomic_path
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.disk import disk_may_fail
from visionzoo.tasks.engine.ema import EMA
from visionzoo.tasks.engine.export import export_run
from visionzoo.tasks.lightning_private import log_now
from visionzoo.weights.reading import DAMAGE, unpacks_to_too_much


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write aside, sync, rename; read tensors and plain types only.

    A disk that is full does not end the run: the earlier checkpoint stays, and a warning says so, see ``disk.py``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write all of it or nothing; a full disk is a warning, and the earlier file stays."""
        del storage_options
        kept = "the earlier one is untouched" if Path(path).exists() else "there is none yet"
        with (
            disk_may_fail(Path(path), f"{kept}, training goes on", every_time=True),
            atomic_path(path) as temporary,
        ):
            _torch_save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint. Objects in it are never unpickled, so ``weights_only`` other than True is refused.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: for a file that is cut off, or that holds anything but tensors and plain types.
        """
        if weights_only is False:
            raise ValueError(f"{path} is only read with weights_only=True; a checkpoint must hold no objects")
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        return _read(Path(path), map_location)


def _read(path: Path, map_location: Any = "cpu", *, mmap: bool = False) -> Any:
    stored = None
    try:
        why = unpacks_to_too_much(path)
        if why is None:
            # only archives can be mapped; of anything else torch would say that, and not what is wrong with the file
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the error says it better
                stored = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and is_zipfile(path))
    except UnpicklingError as error:
        raise ValueError(f"{path} is damaged, or holds objects, which could run code, and is not loaded") from error
    except (PermissionError, FileNotFoundError, MemoryError):  # nothing is wrong with the file
        raise
    except DAMAGE as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path} is no whole checkpoint: {first or type(error).__name__}") from error
    if why is not None:
        raise ValueError(f"{path} was not loaded: {why}")
    return stored


def peek(path: Path) -> Any:
    """A checkpoint for its numbers and settings: its tensors stay on the disk until they are used.

    Raises:
        ValueError: as :meth:`AtomicCheckpointIO.load_checkpoint`.
    """
    return _read(path, mmap=True)


def read_options(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a task in its checkpoint, as they were given and as they rebuild it; empty ones where ``path`` is
    none of our files, such as Lightning's ``last``. Reads no weights.

    Raises:
        ValueError: as :meth:`AtomicCheckpointIO.load_checkpoint`.
    """
    stored = peek(Path(path)) if Path(path).is_file() else None
    if not isinstance(stored, dict) or "schema_version" not in stored:
        return {}, {}
    return stored["options"], stored[LightningModule.CHECKPOINT_HYPER_PARAMS_KEY]


def _torch_save(checkpoint: dict[str, Any], path: Path) -> None:
    """``torch.save``, with a failed write as the OSError it was."""
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's archive writer hides the OSError of a failed write
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(str(error).splitlines()[0]) from error


class Checkpoints(Checkpoint):
    """Save ``last.ckpt`` after every epoch, and ``best.ckpt`` and the export whenever a validation improves.

    Saves happen between optimizer steps only, since a checkpoint does not hold half-accumulated gradients. The weights
    at the end of a run are always judged, also where ``max_steps`` or ``max_time`` ends it inside an epoch, or the last
    epoch is not one that ``check_val_every_n_epoch`` names.

    Args:
        every_n_steps: optimizer steps between saves of ``last.ckpt`` inside an epoch; 0 for the end of epochs only.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        if every_n_steps < 0:
            raise ValueError(f"save_every_n_steps={every_n_steps} must be at least 0")
        self.every_n_steps = every_n_steps
        self.best: float | None = None
        self.best_at: tuple[int, int] = (0, 0)  #: epoch, from 1 on, and optimizer step of the best weights
        self.epochs = 0  #: the last epoch that was judged
        self.judged = -1  #: optimizer step of the weights that were judged last
        self._last_step = -1
        self._saved = -1  #: optimizer step of what ``last.ckpt`` holds, of what was saved here
        self._stops = False  #: training was told to stop between two batches of one optimizer step

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, where it was reached, and up to where weights were judged."""
        return {"best": self.best, "best_at": list(self.best_at), "epochs": self.epochs, "judged": self.judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.best, self.epochs = state_dict["best"], state_dict.get("epochs", 0)
        self.judged = state_dict.get("judged", -1)
        epoch, step = state_dict.get("best_at", (0, 0))
        self.best_at = (epoch, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that goes on knows its best score again."""
        self._last_step = trainer.global_step
        if trainer.ckpt_path:
            self.recall_best(trainer, _task(pl_module))

    def recall_best(self, trainer: Trainer, task: VisionTask) -> None:
        """Weights at an end inside an epoch were judged, and may be the best, after ``last.ckpt`` was written."""
        if not task.run_folder.best.is_file():
            return
        try:
            stored = peek(task.run_folder.best)
        except ValueError as error:
            rank_zero_warn(f"{error}; the run goes on from last.ckpt, and writes it anew when the weights get better")
            return
        found = stored["callbacks"].get(self.state_key, {}).get("best")
        reached = stored["global_step"] <= trainer.global_step
        if reached and found is not None and self._improves(found, task.monitor_mode):
            self.load_state_dict(stored["callbacks"][self.state_key])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between steps: every ``every_n_steps`` of them, and where training ends inside an epoch."""
        stepped = trainer.global_step != self._last_step
        self._last_step = trainer.global_step
        self._stop_after_a_step(trainer, stepped)
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        due = stepped and (due or trainer.global_step == trainer.max_steps or trainer.should_stop)
        self._judge_at_the_end(trainer)
        # at the last batch the epoch's own save follows, after validation
        if due and batch_idx + 1 < trainer.num_training_batches:
            save_between_steps(trainer, _task(pl_module))
            self._saved = trainer.global_step

    def _stop_after_a_step(self, trainer: Trainer, stepped: bool) -> None:
        """Whoever stops training (``max_time``, a callback) may do so between two batches of a step, where nothing can
        be saved: it goes on to the step's end."""
        if trainer.should_stop and not stepped:
            self._stops, trainer.should_stop = True, False
        elif self._stops and stepped:
            self._stops, trainer.should_stop = False, True

    def _judge_at_the_end(self, trainer: Trainer) -> None:
        """Have Lightning validate after the last step; it does so where it is told to stop."""
        last_batch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        last = last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        if last or trainer.should_stop or trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch = 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and export weights that are better than all before."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        task = _task(pl_module)
        if self._judge(trainer, task, trainer.callback_metrics, trainer.current_epoch + 1):
            trainer.save_checkpoint(task.run_folder.best, weights_only=False)

    def _judge(self, trainer: Trainer, task: VisionTask, scores: Mapping[str, Any], epoch: int) -> bool:
        """Whether the weights are the best so far, by ``scores``; then they are exported."""
        self.epochs, self.judged = epoch, trainer.global_step
        value = scores.get(task.monitor)
        if value is None or not self._improves(float(value), task.monitor_mode):
            return False
        if not self._export(trainer, task):
            return False  # the best is what is on the disk
        self.best, self.best_at = float(value), (self.epochs, trainer.global_step)
        return True

    def judge_last(self, trainer: Trainer, task: VisionTask, scores: Mapping[str, float], epoch: int) -> None:
        """Judge the weights of ``last.ckpt``, which the run holds and has not judged; call it on every rank."""
        last = trainer.strategy.checkpoint_io.load_checkpoint(task.run_folder.last)
        if self._judge(trainer, task, scores, epoch) and trainer.is_global_zero:
            last["callbacks"][self.state_key] = self.state_dict()
            trainer.strategy.checkpoint_io.save_checkpoint(last, task.run_folder.best)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch that is whole, or that ends with weights which are not saved yet."""
        # An epoch that max_steps or max_time broke off counts as whole from here on; what was saved between its steps
        # goes on with its rest. A validation inside the epoch that stops the run comes after the last of these saves.
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or self._saved != trainer.global_step:
            save_last(trainer, _task(pl_module))
            self._saved = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the last weights where nothing was evaluated."""
        self.export_last(trainer, _task(pl_module))

    def which(self) -> str:
        """Whose weights were exported, as ``best epoch, 2 of 3``; empty where nothing has been judged."""
        if not self.epochs:
            return ""
        if self.best is None:
            return f"last epoch, {self.epochs}"
        return f"best epoch, {self.best_at[0]} of {self.epochs}"

    def export_last(self, trainer: Trainer, task: VisionTask) -> None:
        """Export the weights as they are, unless a validation has chosen the best ones."""
        if self.best is None:
            self._export(trainer, task)

    def _improves(self, value: float, mode: str) -> bool:
        if math.isnan(value):
            return False
        better: Callable[[float, float], bool] = float.__gt__ if mode == "max" else float.__lt__
        return self.best is None or better(value, self.best)

    def _export(self, trainer: Trainer, task: VisionTask) -> bool:
        ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
        if ema is None:
            return export_run(trainer, task)
        with ema.averaged(task):
            return export_run(trainer, task)


def save_last(trainer: Trainer, task: VisionTask) -> None:
    """Write ``last.ckpt``; call it on every rank."""
    trainer.save_checkpoint(task.run_folder.last, weights_only=False)


def save_between_steps(trainer: Trainer, task: VisionTask) -> None:
    """Write ``last.ckpt`` from ``on_train_batch_end``, inside an epoch; call it on every rank.

    Lightning logs a step after that hook. Whoever resumes does not come by here again, so what this step has to say is
    logged now; the loggers pass over it when it comes a second time.
    """
    log_now(trainer)
    save_last(trainer, task)


def _task(module: LightningModule) -> VisionTask:
    assert isinstance(module, VisionTask)
    return module
