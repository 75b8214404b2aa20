"""The share of each batch in an optimizer step over several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from visionzoo.tasks.base import VisionTask


class Share(NamedTuple):
    """What a batch counts in its optimizer step."""

    divisor: float  #: of its mean loss
    rescale: float  #: factor on the gradients of the batches before it, 1 but where sizes turned out to differ


class Window:
    """The batches of one optimizer step. Every image weighs the same: the gradient is that of the mean over all.

    Lightning divides each loss by ``accumulate_grad_batches``. The last window of an epoch may have fewer batches, or
    a smaller last one; divided so, its images would count for less, or for more.
    """

    def __init__(self) -> None:
        self._images = 0
        self._expected = 0.0  #: images by which the losses were divided so far

    def add(self, task: VisionTask, batch_idx: int, size: int) -> Share:
        """Take the next batch, of ``size`` images, into account. An empty batch counts nothing."""
        trainer = task.trainer
        most, total = trainer.accumulate_grad_batches, trainer.num_training_batches
        place = batch_idx % most
        if place == 0:
            self._images = 0
            self._expected = float(max(size, 1) * min(most, total - batch_idx))
        self._images += size
        rescale = 1.0
        last = place == most - 1 or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last and self._images and self._images != self._expected:
            rescale, self._expected = self._expected / self._images, float(self._images)
        return Share(self._expected / max(size, 1), rescale)


def rescale_gradients(task: VisionTask, factor: float) -> None:
    """Multiply what has been accumulated; before the last backward pass, so that processes exchange the result."""
    if factor != 1:
        for parameter in task.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
