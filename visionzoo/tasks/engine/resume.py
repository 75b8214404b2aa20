"""A run that goes on: from where, and what cannot change in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.terminal import say

#: Options of the data that change nothing of what is learned. What ``path`` holds is compared, not how it is called.
FREE = frozenset({"path", "num_workers", "worker_start_method", "eval_batch_size", "predict_path", "max_bad_share"})


class Resume(Callback):
    """Say where a run goes on; refuse to go on inside an epoch with other random numbers or other optimizer steps.

    Changed options of the data, such as those of the augmentation, and another precision are applied, and said. What
    decides the order of the samples is refused by the data module.

    Put it before the callbacks that write.

    Args:
        seed: what ``seed_everything`` is.
        data: the options of the data module, of plain types.
    """

    def __init__(self, seed: int = 0, data: Mapping[str, Any] | None = None) -> None:
        self.seed = seed
        self.data = {f"data.{name}": value for name, value in (data or {}).items() if name not in FREE}
        self._then: dict[str, Any] = {}
        self._now: dict[str, Any] = {}
        self._applied_then: dict[str, Any] = {}
        self._applied_now: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take note of the options that a run cannot change in the middle of an epoch."""
        self._now = {
            "seed_everything": self.seed,
            "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
            "trainer.limit_train_batches": trainer.limit_train_batches,
        }
        self._applied_now = {**self.data, "trainer.precision": str(trainer.precision)}

    def state_dict(self) -> dict[str, Any]:
        """Those options, and the ones that are applied anew."""
        return {**self._now, "applied": self._applied_now}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What the run had."""
        self._then = dict(state_dict)
        self._applied_then = self._then.pop("applied", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check and say.

        Raises:
            ValueError: naming what has changed.
        """
        if not trainer.ckpt_path:
            return
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress
        changed = _changes(self._then, self._now)
        # as it was saved: the number of batches in an epoch may have changed too
        if changed and batches.current.processed and not batches.is_last_batch:
            raise ValueError(
                f"cannot go on at batch {batches.current.processed} of epoch {trainer.current_epoch + 1}: "
                f"{'; '.join(changed)}. Resume with what the run had; it may change between two epochs"
            )
        if trainer.is_global_zero:
            total = trainer.estimated_stepping_batches
            of = f" of {int(total)}" if 0 < total < float("inf") else ""
            say(f"goes on at step {trainer.global_step}{of}, in epoch {trainer.current_epoch + 1}", flush=True)
            if applied := _changes(self._applied_then, self._applied_now):
                say(f"from here on: {'; '.join(applied)}", flush=True)


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``"data.magnitude was 7.0 and is 3.0"`` for each that differs."""
    return [f"{k} was {v} and is {now[k]}" for k, v in then.items() if k in now and v != now[k]]
