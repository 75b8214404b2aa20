"""The names of Lightning that are not public, in one place. Without one of them a run is slower or says less."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn

from visionzoo.layers.sync_norm import synchronise


def is_logged_step(trainer: Trainer) -> bool:
    """Whether Lightning hands the values of the optimizer step at hand to the loggers."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    stepped: int = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
    return (every > 0 and (stepped + 1) % every == 0) or trainer.should_stop


def forget_logged(trainer: Trainer, names: Collection[str]) -> None:
    """Have Lightning not read these values again after every batch; who asks for them still gets them."""
    results: Any = getattr(trainer, "_results", None)
    for item in () if results is None else results.values():
        if item.meta.name in names:
            item.reset()


def show_callbacks(trainer: Trainer, values: Mapping[str, Tensor]) -> None:
    """Have ``trainer.callback_metrics`` hold these, for callbacks that follow every step; nothing waits for them."""
    trainer._logger_connector._callback_metrics.update(values)


def log_now(trainer: Trainer) -> None:
    """Hand the values of the step at hand to the loggers, from a hook that comes before Lightning does so."""
    trainer._logger_connector.update_train_step_metrics()


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning's handlers out: theirs broadcasts inside the handler, and waits for ranks that heard nothing.

    Nor does rank 0 tell the others before every batch, which costs each of them a wait.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


class SyncNorms(LayerSync):
    """``Trainer(sync_batchnorm=True)`` with our norms: Lightning's puts torch's in place of timm's norms with an
    activation, which is lost without a word, and torch's has no kernel for the CPU."""

    def __init__(self) -> None:
        self._changed: list[tuple[nn.Module, type]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise every BatchNorm. Raises ValueError for one of an unknown kind."""
        self._changed = [*synchronise(model)]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Make them what they were."""
        for module, kind in self._changed:
            object.__setattr__(module, "__class__", kind)
        return model


def use_our_norms(trainer: Trainer) -> None:
    """Have ``sync_batchnorm`` be :class:`SyncNorms`, where Lightning would take its own."""
    strategy: Any = trainer.strategy
    if isinstance(getattr(strategy, "_layer_sync", None), TorchSyncBatchNorm):
        strategy._layer_sync = SyncNorms()
