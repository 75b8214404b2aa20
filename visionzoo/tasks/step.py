"""One training step: what fills ``.grad`` for a batch.

A task gives the loss of a batch as one part or several (:meth:`TaskInterface.loss_parts`): the whole, micro-batches,
the parts of a gradient cache, or the rounds of a conversation. Each part has its backward pass before the next is
computed, so that memory holds the activations of one. The last part is left to Lightning, whose backward pass is the
one in which processes exchange gradients; where a step may be repeated after memory ran out, that is done here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from visionzoo.runs.memory import is_out_of_memory
from visionzoo.tasks.accumulation import Window
from visionzoo.tasks.interface import LossPart, TaskInterface
from visionzoo.tasks.out_of_memory import Before, advise, can_repeat, smaller


class Step(NamedTuple):
    """What a training step came to."""

    loss: Tensor  #: what Lightning goes on with; without a graph where nothing is left to do
    value: Tensor  #: the loss of the whole batch, without a graph
    logs: Mapping[str, Tensor]  #: of the whole batch, without a graph
    size: int  #: images in the batch

    def named(self) -> dict[str, Tensor]:
        """Loss and logs by the names under which they are logged."""
        return {"train/loss": self.value, **{f"train/{name}": value for name, value in self.logs.items()}}


class TrainingStep:
    """Fills ``.grad``, batch by batch, and adds up over the batches of an optimizer step.

    Where memory runs out, the same batch is taken again in parts of half the size, and all later ones are too.
    """

    def __init__(self) -> None:
        self.size: int | None = None  #: images that go through the network at a time; None for the whole batch
        self.filled = False  #: whether ``.grad`` holds something of the batch at hand
        self._window = Window()

    def __call__(self, task: TaskInterface, batch: Any, batch_idx: int) -> Step:
        """The step for one batch; gradients of earlier batches of the same optimizer step stay.

        Raises:
            MemoryError: if memory runs out and the step cannot be repeated, with what to do about it.
        """
        images, trainer = task.images_in(batch), task.trainer
        begun = batch_idx % trainer.accumulate_grad_batches != 0
        if not begun:
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
        self.filled = True
        divisor = self._window.add(trainer, batch_idx, images)
        if not can_repeat(task):
            with advise(task):
                return self._once(task, batch, images, divisor, leave_last=True)
        before = Before(task, begun)
        while True:
            step: Step | None = None
            try:
                step = self._once(task, batch, images, divisor, leave_last=False)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):  # which holds the activations, and is gone before the next try
                    raise
            done = step is not None  # and on every other rank
            if trainer.world_size > 1:
                done = trainer.strategy.reduce_boolean_decision(done, all=True)
            if done and step is not None:
                return step
            self.size = smaller(task, min(self.size or images, images), images)
            before.restore()

    def _once(self, task: TaskInterface, batch: Any, images: int, divisor: float, *, leave_last: bool) -> Step:
        values: list[Tensor] = []
        logs: dict[str, list[Tensor]] = {}
        loss: Tensor | None = None
        ended = False
        for part in task.loss_parts(batch, self.size):
            if ended:  # its gradient would be lost
                raise ValueError(
                    f"{type(task).__name__}.loss_parts gave a part after its last one; all but the last need last=False"
                )
            ended = part.last
            values.append((part.loss if part.value is None else part.value).detach())
            for name, value in part.logs.items():
                logs.setdefault(name, []).append(value.detach())
            if part.last and leave_last:
                loss = _for_lightning(task, part, divisor)
            else:
                _backward(task, part, divisor)
        if not ended:
            raise ValueError(f"{type(task).__name__}.loss_parts ended without a part whose last is true")
        total = _sum(values)
        if loss is None:
            loss = total
        elif len(values) > 1 or divisor != task.trainer.accumulate_grad_batches:
            # with the gradient of the last part, and the value of all
            loss = total + (loss - loss.detach())
        if isinstance(task.trainer.strategy, DDPStrategy) and (len(values) > 1 or not leave_last):
            loss = _Exchange.apply(loss, *(p for p in task.parameters() if p.requires_grad))
        return Step(loss, total, {name: _sum(parts) for name, parts in logs.items()}, images)


def _sum(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _scaled(task: TaskInterface, loss: Tensor) -> Tensor:
    """Multiplied by what 16-bit training multiplies losses by."""
    scaler = getattr(task.trainer.precision_plugin, "scaler", None)
    return loss if scaler is None else scaler.scale(loss)


def _backward(task: TaskInterface, part: LossPart, divisor: float) -> None:
    with torch.autocast(task.device.type, enabled=False):
        if part.gradient is not None:
            part.loss.backward(part.gradient)
        else:
            _scaled(task, part.loss if divisor == 1 else part.loss / divisor).backward()


def _for_lightning(task: TaskInterface, part: LossPart, divisor: float) -> Tensor:
    """The last part as a scalar that Lightning scales, divides by ``accumulate_grad_batches`` and runs backward."""
    trainer = task.trainer
    factor = trainer.accumulate_grad_batches / divisor
    if part.gradient is None:
        return part.loss if factor == 1 else part.loss * factor
    # its gradient has been divided and scaled already
    once = trainer.accumulate_grad_batches / _scaled(task, torch.ones((), device=task.device))
    return (part.loss.float() * (part.gradient * once)).sum()


class _Exchange(torch.autograd.Function):
    """A loss that depends on every parameter, by a gradient of zero where it does not: DDP waits for all its hooks."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, *(torch.zeros((), dtype=d, device=v).expand(s) for s, d, v in ctx.like)
