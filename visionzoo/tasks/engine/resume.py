"""A run that goes on: from where, and what cannot change in the middle of an epoch."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Resume(Callback):
    """Say where a run goes on; refuse to go on inside an epoch with other random numbers or other optimizer steps.

    Put it before the callbacks that write.

    Args:
        seed: what ``seed_everything`` is.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._then: dict[str, Any] = {}
        self._now: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._now = {
            "seed_everything": self.seed,
            "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        }

    def state_dict(self) -> dict[str, Any]:
        return dict(self._now)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._then = dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check and say.

        Raises:
            ValueError: naming what has changed.
        """
        if not trainer.ckpt_path:
            return
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        changed = [f"{k} was {v} and is {self._now[k]}" for k, v in self._then.items() if v != self._now[k]]
        if changed and 0 < batches.processed < trainer.num_training_batches:
            raise ValueError(
                f"cannot go on at batch {batches.processed} of epoch {trainer.current_epoch + 1}: "
                f"{'; '.join(changed)}. Resume with what the run had; it may change between two epochs"
            )
        if trainer.is_global_zero:
            total = trainer.estimated_stepping_batches
            of = f" of {int(total)}" if 0 < total < float("inf") else ""
            print(f"goes on at step {trainer.global_step}{of}, in epoch {trainer.current_epoch + 1}", flush=True)
