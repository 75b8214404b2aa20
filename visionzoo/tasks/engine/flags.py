"""What ranks tell each other at every optimizer step, in one small exchange, without waiting for a GPU."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from pytorch_lightning import Trainer
from torch import Tensor


class Reading(NamedTuple):
    """The flags of one optimizer step."""

    loss: bool  #: that of this rank was not finite
    gradient: bool  #: the same of its gradient
    skipped: bool  #: on some rank one of them was not, and the step was left out
    stop: bool  #: some rank was asked to stop


class Flags:
    """The flags of the guard and of the interrupt, which share one all-reduce.

    On a CPU they are read at once. A GPU's are read one step later: by then they are there, and nothing waits. Every
    rank reads the same at the same step.
    """

    def __init__(self) -> None:
        self.stop = False  #: whether this rank was asked to stop; set from a signal handler
        self.all_stop = False  #: whether some rank was, as far as has been read
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def start(self) -> None:
        """Forget what an earlier run was told."""
        self.stop = self.all_stop = False
        self._sent.clear()

    def exchange(self, trainer: Trainer, not_finite: Tensor) -> Tensor:
        """Tell the other ranks, and hear from them.

        Args:
            trainer: of this rank.
            not_finite: (2,) float32 on its device, 1 where loss and gradient are not finite, else 0.

        Returns:
            scalar float32, 1 if one of them is not on some rank.
        """
        everyone = torch.cat((not_finite, not_finite.new_full((1,), float(self.stop))))
        if trainer.world_size > 1:
            torch.distributed.all_reduce(everyone, torch.distributed.ReduceOp.MAX)
        skip = everyone[:2].amax()
        values, event = torch.cat((not_finite, skip[None], everyone[2:])), None
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent.append((values, event))
        return skip

    def read(self, *, wait: bool = False) -> list[Reading]:
        """The steps that can be read, oldest first, each once; with ``wait`` also the one that a GPU is still at."""
        found = []
        while self._sent and (wait or self._sent[0][1] is None or len(self._sent) > 1):
            values, event = self._sent.popleft()
            if event is not None:
                event.synchronize()
            found.append(Reading(*(value > 0 for value in values.tolist())))
            self.all_stop |= found[-1].stop
        return found
