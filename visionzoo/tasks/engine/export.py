"""The exported model of a run: ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

from pytorch_lightning import Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.fsdp import FullySharded


def export_run(trainer: Trainer, task: VisionTask) -> None:
    """Write the task's model as it is now; adapters are merged. Only rank 0 writes."""
    from visionzoo.models.bundle import save_bundle

    strategy = trainer.strategy
    state = strategy.full_state(task.model) if isinstance(strategy, FullySharded) else None
    if trainer.is_global_zero:
        model, config = task.export_model()
        try:
            save_bundle(model, config, task.run_folder.path, state_dict=state)
        except OSError as error:  # as for checkpoints: the earlier export stays whole, and the run goes on
            rank_zero_warn(f"could not export to {task.run_folder.path} ({error}); training goes on")
    trainer.strategy.barrier("export_run")  # no rank reads the files before they are there
