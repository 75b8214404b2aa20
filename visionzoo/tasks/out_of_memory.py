"""Memory that runs out in a training step: whether it can be taken again in smaller parts, and from what state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from visionzoo.losses.gather import RandomState, Values
from visionzoo.runs.memory import is_out_of_memory
from visionzoo.tasks.interface import TaskInterface


def can_repeat(task: TaskInterface) -> bool:
    """Whether a step can be repeated in parts: not where ranks exchange something in the middle of it.

    Several processes must agree after every step whether memory ran out on one, and exchange gradients only then, not
    during the backward pass. So they do it only where ``halve_on_oom`` is true, not where it is "auto".
    """
    if task.halve_on_oom is False or not task.can_split():
        return False
    strategy = task.trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        return True
    if task.halve_on_oom != "auto" and isinstance(strategy, DDPStrategy):
        return not any(isinstance(m, nn.SyncBatchNorm) for m in task.modules())
    return False


class Before:
    """What a step changes before it is done, as it was: gradients, running statistics, the state of torch's generators.

    Args:
        task: its trainer has optimizers.
        begun: whether earlier batches of the same optimizer step have left gradients.
    """

    def __init__(self, task: TaskInterface, begun: bool) -> None:
        self._trained = [p for o in task.trainer.optimizers for g in o.param_groups for p in g["params"]]
        self._gradients = [p.grad.clone() if begun and p.grad is not None else None for p in self._trained]
        self._random, self._statistics = RandomState(), Values(task.running_statistics)

    def restore(self) -> None:
        """Put it all back; as often as it takes."""
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        self._random.restore()
        self._statistics.restore()


def smaller(task: TaskInterface, size: int, whole: int) -> int:
    """Half of a micro-batch in which memory ran out, the same on every rank; the freed memory is given back.

    Raises:
        MemoryError: where there is nothing to halve.
    """
    largest = int(task.trainer.strategy.reduce(torch.tensor(size, device=task.device), reduce_op="max"))
    if largest <= 1:
        raise MemoryError(
            "memory ran out in a training step of one image at a time; take a smaller model or image_size, "
            "--model.grad_checkpointing true, or --trainer.precision bf16-mixed"
        )
    half = (largest + 1) // 2
    if task.device.type == "cuda":
        torch.cuda.empty_cache()
    rank_zero_warn(
        f"memory ran out at step {task.trainer.global_step}: from here on {half} images at a time, accumulated to the "
        f"same {whole}; the gradient stays that of the whole batch"
    )
    return half


@contextmanager
def advise(task: TaskInterface) -> Iterator[None]:
    """Where memory runs out, raise an error that says what to do about it.

    Raises:
        MemoryError: in place of whatever said that memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"memory ran out in a training step; {task.memory_advice()}") from error


def statistics_of(module: nn.Module) -> list[Tensor]:
    """What a forward pass changes, tensors of any shape: the running statistics of BatchNorm."""
    return [b for m in module.modules() if getattr(m, "track_running_stats", False) for b in m.buffers(recurse=False)]
