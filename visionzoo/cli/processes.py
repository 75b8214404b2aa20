"""A training command as a process: how it hears that it shall end, with whom it ends, and how it leaves its peers.

Imports nothing heavy, so that signals are heard while torch is still loading.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from visionzoo.signals import PREEMPTION

_PR_SET_PDEATHSIG = 1


class StopSignal(BaseException):
    """A scheduler's signal came where there is no step to wait for. Not an Exception, which libraries catch."""


@contextmanager
def scheduler_signals() -> Iterator[None]:
    """Inside the block SIGTERM and SIGUSR1 raise :class:`StopSignal`; the second one ends the process as it would."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python does not deliver signals
        yield
        return
    before = {number: signal.signal(number, _raise) for number in PREEMPTION}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)
    raise StopSignal(signal.Signals(number).name)


def die_with_launcher() -> None:
    """Have Linux tell this process when the one that started it as a rank dies, however it dies.

    A rank of torchrun hears SIGTERM, saves and ends, instead of training on beside whoever resumes the run. A rank that
    Lightning started is killed with rank 0, without which there is nothing to save.
    """
    if sys.platform != "linux":
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        number = signal.SIGTERM
    elif os.environ.get("LOCAL_RANK", "0") != "0" and _arguments(os.getppid()) == sys.argv[1:]:
        number = signal.SIGKILL
    else:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _arguments(pid: int) -> list[str]:
    """As many of the last arguments of a process as this one has; Lightning starts ranks with those of rank 0."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:  # gone, or another user's
        return []
    return words[max(0, len(words) - len(sys.argv) + 1) :]


def leave_together() -> None:
    """Wait for the other ranks and close the connections to them; for a command that has ended well.

    Lightning leaves that to the end of the process, where gloo's threads and torch's clean-up race: a rank whose peer
    was quicker then sometimes aborts.
    """
    distributed: Any = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
