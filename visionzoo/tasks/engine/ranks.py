"""Ranks that Lightning started: when one dies, say which and how, and end the others."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from subprocess import Popen
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.terminal import say

#: Seconds that rank 0 has to end by itself once another rank has died.
GRACE = 3.0


class RankDiedError(Exception):
    """Another rank died; the message, which has been printed, says which and how."""


class Ranks(Callback):
    """Watch the processes that Lightning's own launcher started; under torchrun and SLURM that is theirs to do.

    Args:
        resume_command: what a person types to go on.
    """

    def __init__(self, resume_command: str = "") -> None:
        self.resume_command = resume_command
        self._processes: list[Popen[bytes]] = []
        self._said = ""
        self._lock = threading.Lock()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the processes that this one has started."""
        found: Any = getattr(trainer.strategy.launcher, "procs", [])
        if found and not self._processes:
            self._processes = list(found)
            threading.Thread(target=self._watch, daemon=True, name="ranks").start()

    def _watch(self) -> None:
        while not (killed := self.died(by_signal=True)):
            time.sleep(0.2)
        self._say(killed)
        time.sleep(GRACE)  # a collective that failed ends this process in order
        for process in self._processes:
            process.kill()
        os._exit(1)  # one that waits for the dead rank would wait for ever

    def died(self, *, by_signal: bool = False) -> str:
        """``"rank 1 (process 71) was ended by SIGKILL"``; empty where all live or have ended well."""
        for rank, process in enumerate(self._processes, start=1):
            code = process.poll()
            if code is None or code == 0 or (by_signal and code > 0):
                continue
            how = f"was ended by {_name(-code)}" if code < 0 else f"ended with exit code {code}"
            return f"rank {rank} (process {process.pid}) {how}"
        return ""

    def _say(self, what: str) -> None:
        with self._lock:
            if not self._said:
                go_on = f" Go on with:\n  {self.resume_command}" if self.resume_command else ""
                say(f"error: {what}; the others are stopped.{go_on}", file=sys.stderr, flush=True)
                self._said = what

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the dead rank where its death is why this one failed.

        Raises:
            RankDiedError: in place of what the connection to it said.
        """
        if not self._processes or not isinstance(exception, RuntimeError):
            return
        deadline = time.monotonic() + GRACE  # the connection breaks before the process can be waited for
        while not (what := self.died()) and time.monotonic() < deadline:
            time.sleep(0.05)
        if what:
            self._say(what)
            raise RankDiedError(what) from exception


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
