"""``predictions.csv`` of ``train.py TASK predict``."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from visionzoo.files import write_csv
from visionzoo.tasks.base import VisionTask


class Predictions(Callback):
    """Write one row per image, in the order of the source, over all ranks."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[str, ...]] = {}  #: position in the source -> cells

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep the rows of a batch by position in the source."""
        assert isinstance(pl_module, VisionTask)
        self.rows.update(zip(batch.index.tolist(), pl_module.prediction_rows(outputs), strict=True))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather those of all ranks and write ``predictions.csv``."""
        assert isinstance(pl_module, VisionTask)
        if trainer.world_size > 1:
            gathered: list[dict[int, tuple[str, ...]]] = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self.rows)
            self.rows = {position: row for part in gathered for position, row in part.items()}
        if trainer.is_global_zero:
            loader: Any = trainer.predict_dataloaders
            source = loader.dataset.source
            rows = [(source.sample_id(i), *self.rows[i]) for i in sorted(self.rows)]
            write_csv(pl_module.run_folder.path / "predictions.csv", ["image", *pl_module.prediction_columns], rows)
