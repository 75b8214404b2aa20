"""The names of Lightning that are not public, in one place. Without one of them a run is slower or says less."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pytorch_lightning import Trainer
from torch import Tensor


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
