"""A training step in parts that fit into memory: the same step, in as many parts as it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from visionzoo.losses.gather import RandomState, Values
from visionzoo.runs.memory import is_out_of_memory
from visionzoo.tasks.accumulation import rescale_gradients

if TYPE_CHECKING:
    from visionzoo.tasks.base import TrainStep, VisionTask


class MicroBatches:
    """Runs forward and backward of a batch; where memory runs out, again in parts of half the size, from then on.

    The gradient is that of the whole batch: losses of the parts add up to its loss. Whatever a broken-off try has
    changed is put back first: gradients, running statistics, the state of torch's generators. All ranks halve
    together. With several processes gradients are exchanged once the last part is done, not during the backward pass:
    a rank whose memory runs out must not leave the others waiting in the middle of it.
    """

    def __init__(self) -> None:
        self.size: int | None = None  #: images that go through the network at a time; None for the whole batch
        self.done = False  #: whether this batch has had its backward pass

    def used_by(self, task: VisionTask) -> bool:
        """Whether a step of ``task`` can be repeated: not where ranks exchange something in the middle of it."""
        if not (task.halve_on_oom and task.splits and task.automatic_optimization):
            return False
        synced = any(isinstance(m, nn.SyncBatchNorm) for m in task.modules())
        return isinstance(task.trainer.strategy, SingleDeviceStrategy | DDPStrategy) and not synced

    def step(self, task: VisionTask, batch: Any, batch_idx: int) -> TrainStep:
        """Forward and backward of one batch.

        Returns:
            the step of the whole batch. Its loss has no graph but, with several processes, one that makes Lightning's
            own backward pass exchange the gradients.

        Raises:
            MemoryError: if a single image does not fit.
        """
        share = task.window.add(task, batch_idx, len(batch.images))
        rescale_gradients(task, share.rescale)
        parameters = [p for p in task.parameters() if p.requires_grad]
        # what earlier batches of this optimizer step have accumulated
        begun = batch_idx % task.trainer.accumulate_grad_batches != 0
        gradients = [None if p.grad is None or not begun else p.grad.clone() for p in parameters]
        before, statistics = RandomState(), Values(running_statistics(task))

        def start() -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()

        if not begun:
            start()
        while (step := self._try(task, batch, share.divisor)) is None:
            start()
            before.restore()
            statistics.restore()
        self.done = True
        loss = step.loss
        if isinstance(task.trainer.strategy, DDPStrategy):  # of one process too: DDP waits for its hooks
            loss = _Exchange.apply(loss, *parameters)
        return step._replace(loss=loss)

    def _try(self, task: VisionTask, batch: Any, divisor: float) -> TrainStep | None:
        """The step, or None where memory ran out on some rank; ``size`` is then smaller."""
        whole, failed, step = len(batch.images), False, None
        try:
            step = self._run(task, batch, divisor)
        except (RuntimeError, MemoryError) as error:  # it holds the activations, and must be gone before the next try
            if not is_out_of_memory(error):
                raise
            failed = True
        if task.trainer.strategy.reduce_boolean_decision(not failed, all=True):
            return step
        del step
        self.size = halved(task, min(self.size or whole, whole), whole)
        return None

    def _run(self, task: VisionTask, batch: Any, divisor: float) -> TrainStep:
        prepared, whole = task.prepare(batch), len(batch.images)
        parts = [prepared] if self.size is None or self.size >= whole else task.split(prepared, self.size)
        strategy = task.trainer.strategy
        steps = []
        for part in parts:
            step = task.part_loss(part)
            with torch.autocast(task.device.type, enabled=False):
                strategy.backward(step.loss / divisor, None)
            steps.append(step._replace(loss=step.loss.detach(), logs={k: v.detach() for k, v in step.logs.items()}))
        if len(steps) == 1:
            return steps[0]
        logs = {name: torch.stack([s.logs[name] for s in steps]).sum() for name in steps[0].logs}
        return steps[0]._replace(loss=torch.stack([s.loss for s in steps]).sum(), logs=logs, size=whole)


def halved(task: VisionTask, size: int, whole: int) -> int:
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


def told_what_to_do(task: VisionTask, work: Callable[[], Any]) -> Any:
    """``work()``; where memory runs out, with an error that says what to do about it.

    Raises:
        MemoryError: in place of whatever said that memory ran out.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"memory ran out in a training step; {task.memory_advice()}") from error


def running_statistics(module: nn.Module) -> list[Tensor]:
    """What a forward pass changes: the running statistics of BatchNorm."""
    return [b for m in module.modules() if getattr(m, "track_running_stats", False) for b in m.buffers(recurse=False)]


class _Exchange(torch.autograd.Function):
    """A loss that depends on every parameter with a gradient of zero: DDP's hooks then exchange what is there."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        del grad
        return None, *(torch.zeros((), dtype=d, device=v).expand(s) for s, d, v in ctx.like)
