"""The share of each batch in an optimizer step over several of them."""

from __future__ import annotations

from pytorch_lightning import Trainer


class Window:
    """The batches of one optimizer step. Every image weighs the same: the gradient is that of the mean over all.

    Lightning divides each loss by ``accumulate_grad_batches``. The last window of an epoch may have fewer batches, or
    a smaller last one; divided so, its images would count for less, or for more.
    """

    def __init__(self) -> None:
        self._images = 0
        self._expected = 0.0  #: images by which the losses were divided so far

    def add(self, trainer: Trainer, batch_idx: int, size: int) -> float:
        """Take the next batch, of ``size`` images, into account. An empty batch counts nothing.

        The gradients of the batches before it are rescaled where sizes turned out to differ; before the last backward
        pass, so that processes exchange the result.

        Returns:
            the divisor of its mean loss.
        """
        most, total = trainer.accumulate_grad_batches, trainer.num_training_batches
        place = batch_idx % most
        if place == 0 or not self._expected:  # a run may go on in the middle of a window, without what came before
            self._images = 0
            self._expected = float(max(size, 1) * min(most - place, total - batch_idx))
        self._images += size
        last = place == most - 1 or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last and self._images and self._images != self._expected:
            _rescale_gradients(trainer, self._expected / self._images)
            self._expected = float(self._images)
        return self._expected / max(size, 1)


def _rescale_gradients(trainer: Trainer, factor: float) -> None:
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
