"""Ctrl-C, SIGTERM and SIGUSR1 between two steps: save, say how to go on, stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.signals import PREEMPTION, STOPPED, TRY_AGAIN
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.checkpoint import save_between_steps, save_last
from visionzoo.tasks.engine.disk import unwritten
from visionzoo.tasks.engine.flags import Flags
from visionzoo.terminal import say


class RunInterruptedError(Exception):
    """The run was stopped from outside after ``last.ckpt`` was saved. The message says how to go on."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code  #: the exit code of the process


class Interrupt(Callback):
    """Turn a Ctrl-C or a scheduler's signal into a save at the next step boundary; a second Ctrl-C stops at once.

    All ranks stop at the same step, whichever of them heard the signal first. During validation, and at the last
    batch of an epoch, the save waits for the end of the epoch.

    Args:
        resume_command: what a person types to go on.
        flags: what the ranks tell each other, those of the guard, which has them exchanged; with None several
            processes stop at the end of an epoch only.
    """

    def __init__(self, resume_command: str = "", flags: Flags | None = None) -> None:
        self.resume_command, self.flags = resume_command, flags or Flags()
        self._preempted = False
        self._previous: dict[int, Any] = {}
        self._last_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over: Lightning has put back those that it found."""
        # not earlier: Lightning puts back all handlers that it found shortly before this
        self.flags.start()
        self._preempted, self._last_step = False, trainer.global_step
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not deliver signals
            for number in (signal.SIGINT, *PREEMPTION):
                self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum in PREEMPTION:  # only set a flag: saving here would tear a step apart, and ranks from each other
            self.flags.stop = self._preempted = True
            return
        if self.flags.stop:
            raise KeyboardInterrupt
        self.flags.stop = True
        say("\nstopping after this step; Ctrl-C again stops at once without saving", file=sys.stderr, flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step != self._last_step
        self._last_step = trainer.global_step
        stop = self.flags.stop if trainer.world_size == 1 else self.flags.all_stop
        if stop and stepped and batch_idx + 1 < trainer.num_training_batches:
            self._stop(trainer, pl_module, save_between_steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop where some rank was asked to."""
        if trainer.strategy.reduce_boolean_decision(self.flags.stop, all=False):
            self._stop(trainer, pl_module, save_last)

    def _stop(self, trainer: Trainer, pl_module: LightningModule, save: Callable[[Trainer, VisionTask], None]) -> None:
        assert isinstance(pl_module, VisionTask)
        save(trainer, pl_module)
        lost = trainer.strategy.broadcast(unwritten.get(pl_module.run_folder.last, ""))
        if lost:
            raise OSError(
                f"stopped at step {trainer.global_step}, and could not save ({lost}); an earlier save, if there is "
                f"one, is whole. Go on from it with: {self.resume_command}"
            )
        # one rank may have heard of it alone; all must end with the same code
        preempted = trainer.strategy.reduce_boolean_decision(self._preempted, all=False)
        raise RunInterruptedError(
            f"stopped and saved at step {trainer.global_step}, epoch {trainer.current_epoch + 1}. Go on with:\n"
            f"  {self.resume_command}",
            TRY_AGAIN if preempted else STOPPED,
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the handlers back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the handlers back, and after a second Ctrl-C say what was saved."""
        self._restore()
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            assert isinstance(pl_module, VisionTask)
            if pl_module.run_folder.last.is_file():
                say(f"stopped at once. Go on from the last save with:\n  {self.resume_command}", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
