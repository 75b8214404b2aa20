"""Images that could not be read: each listed once with its reason; too many end the run."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from visionzoo.files import write_csv
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.disk import disk_may_fail, unwritten


class BadSamples(Callback):
    """Collect ``batch.bad`` into ``bad_samples.csv``.

    Args:
        max_share: of the training set, in [0, 1]; when more of it could not be read, the run stops. Several ranks
            compare notes at the end of epochs, one rank at every batch.
    """

    def __init__(self, max_share: float = 0.1) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_bad_share={max_share} must be in [0, 1]; 1 never stops")
        self.max_share = max_share
        self.seen: dict[str, tuple[str, str]] = {}  #: sample id -> (split, reason)
        self._new = False

    def state_dict(self) -> dict[str, Any]:
        """Samples that could not be read, with split and reason."""
        return {"seen": {k: list(v) for k, v in self.seen.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What an earlier session of the run had seen."""
        self.seen = {k: (v[0], v[1]) for k, v in state_dict["seen"].items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the batch's; in a single process the run stops here where they are too many."""
        if self._take("train", batch) and trainer.world_size == 1:
            self._report(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Take note of the batch's."""
        self._take("val", batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Take note of the batch's."""
        self._take("test", batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Take note of the batch's."""
        self._take("predict", batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put those of all ranks together, write the list, and stop where they are too many."""
        self._share(trainer)
        self._report(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put those of all ranks together and write the list."""
        self._share(trainer)
        self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_end(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also warn that they have no row."""
        assert isinstance(pl_module, VisionTask)
        self.on_validation_end(trainer, pl_module)
        if self.seen and trainer.is_global_zero:
            rank_zero_warn(
                f"{len(self.seen)} images could not be read and have no row; "
                f"{pl_module.run_folder.bad_samples} lists them"
            )

    def _take(self, split: str, batch: Any) -> bool:
        new = {name: (split, reason) for name, reason in getattr(batch, "bad", ()) if name not in self.seen}
        self.seen.update(new)
        self._new |= bool(new)
        return bool(new)

    def _share(self, trainer: Trainer) -> None:
        if trainer.world_size == 1:
            return
        gathered: list[dict[str, tuple[str, str]]] = [{} for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(gathered, self.seen)
        before = len(self.seen)
        for part in gathered:
            self.seen = {**part, **self.seen}
        self._new |= len(self.seen) > before

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VisionTask)
        path = pl_module.run_folder.bad_samples
        if self._new and trainer.is_global_zero:
            rows = [(name, split, reason) for name, (split, reason) in sorted(self.seen.items())]
            with disk_may_fail(path, "it is tried again"):
                write_csv(path, ["sample", "split", "reason"], rows)
        self._new = path in unwritten
        bad = sum(split == "train" for split, _ in self.seen.values())
        total = _training_images(trainer)
        if total and bad > self.max_share * total:
            name, reason = next(
                (name, reason) for name, (split, reason) in sorted(self.seen.items()) if split == "train"
            )
            raise ValueError(
                f"{bad} of {total} training images could not be read, more than max_bad_share={self.max_share:g} "
                f"allows; {path} lists them with the reasons, such as {name}: {reason}"
            )


def _training_images(trainer: Trainer) -> int:
    """Size of the training set; 0 where there is none, or none that knows its length."""
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else 0
