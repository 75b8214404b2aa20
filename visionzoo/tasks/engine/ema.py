"""A moving average of the weights: what is evaluated, exported and stored first in checkpoints.

Lightning's own ``EMAWeightAveraging`` was read and not used: it waits for the device twice at every step, averages
integer buffers, has no warm-up, and an interrupt during validation saves the two copies the wrong way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn


def ema_decay_at(step: int, decay: float) -> float:
    """``min(decay, (1 + step) / (10 + step))`` after ``step`` optimizer steps, so that a short run averages too."""
    return min(decay, (1 + step) / (10 + step))


class EMA(Callback):
    """Average trainable parameters and floating-point buffers after every optimizer step.

    ``average = d * average + (1 - d) * weights`` with ``d = ema_decay_at(step, decay)``. The average replaces
    the weights during validation and when training ends. A checkpoint's ``state_dict`` is the average, and
    ``ema_trained`` holds the weights under training, which a resumed run goes on with.

    Args:
        decay: in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay={decay} must be in (0, 1), or 0 to turn the average off")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}  #: by the same names; they share memory with what is trained
        self._last_step = 0
        self._swapped = False
        self._restored: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, or with the average of a checkpoint."""
        tensors = pl_module.state_dict(keep_vars=True)
        self.average, self._weights = {}, {}
        self._join({**_averaged(pl_module), **{name: tensors[name] for name in self._restored}})
        self._last_step, self._swapped = trainer.global_step, False
        for name, tensor in self._restored.items():  # the module holds the checkpoint's state_dict, the average
            self._weights[name].copy_(tensor)
        self._restored = {}

    def _join(self, tensors: Mapping[str, Tensor]) -> None:
        """Average these too, from now on: what a callback unfreezes is there at the next evaluation or save."""
        for name, tensor in tensors.items():
            if name not in self.average:
                self.average[name] = tensor.detach().clone()
            self._weights.setdefault(name, tensor.detach())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step  # known only once the loops are restored

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average after each optimizer step."""
        if trainer.global_step == self._last_step:  # gradients are being accumulated
            return
        self._last_step = trainer.global_step
        self.update(trainer.global_step)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights as they are after ``step`` optimizer steps."""
        weights = [self._weights[name] for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - ema_decay_at(step, self.decay))

    @contextmanager
    def averaged(self, module: nn.Module) -> Iterator[None]:
        """Inside the block ``module`` holds the average; does nothing where it holds it already."""
        if not self.average or self._swapped:
            yield
            return
        self._join(_averaged(module))
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights."""
        if self.average and trainer.state.fn == "fit":
            self._join(_averaged(pl_module))
            self._swap()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        self._unswap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back: what is saved now must be them."""
        self._unswap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module."""
        self._swap()
        self.average, self._weights, self._swapped = {}, {}, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """``state_dict`` is the average, ``ema_trained`` what training goes on from."""
        if not self.average:
            return
        assert not self._swapped, "a checkpoint must not be saved while the average stands in for the weights"
        self._join(_averaged(pl_module))
        stored = checkpoint["state_dict"]
        tensors = pl_module.state_dict(keep_vars=True)
        first = {id(tensors[name]): name for name in self.average}
        # a tied tensor has several names here and one in the average
        averages = {n: self.average[first[id(t)]] for n, t in tensors.items() if id(t) in first}
        checkpoint["ema_trained"] = {name: stored[name] for name in self.average}
        checkpoint["state_dict"] = {**stored, **averages}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights until :meth:`on_fit_start`."""
        if trainer.state.fn == "fit":
            self._restored = checkpoint.get("ema_trained", {})  # without an average, state_dict is what was trained

    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(kept)
        self._swapped = not self._swapped

    def _unswap(self) -> None:
        if self._swapped:
            self._swap()


def _averaged(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and the floating-point buffers that a checkpoint stores, each once, by its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        trained = tensor.requires_grad or not isinstance(tensor, nn.Parameter)
        if trained and tensor.is_floating_point():
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())
