"""Early stopping that says why."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping


class Stopping(EarlyStopping):
    """Stop after ``patience`` validations in a row without a better score. A resumed run may have another patience.

    Args:
        monitor: the logged value.
        mode: ``max`` or ``min``.
        patience: validations.
    """

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience, check_on_train_epoch_end=False)

    @property
    def state_key(self) -> str:
        """Without the monitor's name, which may change."""
        return type(self).__qualname__

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the task chooses by, which it may learn from the first evaluation: without labels another."""
        self.monitor = getattr(pl_module, "monitor", self.monitor)
        super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The state, with the patience that is asked for now."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        self.stopping_reason_message = None

    def why(self, trainer: Trainer) -> str:
        """What ended the run; empty where it was not this."""
        if self.stopping_reason_message is None:
            return ""
        of = f" of {trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        value, best = float(trainer.callback_metrics[self.monitor]), float(self.best_score)
        if value != value:
            reason = f"{self.monitor} is not a number"
        else:
            times = "the last validation" if self.patience == 1 else f"the last {self.wait_count} validations"
            reason = f"{self.monitor} was not better than {best:.4g} in {times} (now {value:.4g})"
        return f"stopped early, after epoch {self.stopped_epoch + 1}{of}: {reason}"
