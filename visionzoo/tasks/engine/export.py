"""The exported model of a run: ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

from pytorch_lightning import Trainer

from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.disk import disk_may_fail, unwritten
from visionzoo.tasks.engine.fsdp import FullySharded


def export_run(trainer: Trainer, task: VisionTask) -> bool:
    """Write the task's model as it is now; adapters are merged. Only rank 0 writes; all hear whether it could."""
    from visionzoo.models.bundle import save_bundle

    strategy = trainer.strategy
    state = strategy.full_state(task.model) if isinstance(strategy, FullySharded) else None
    if trainer.is_global_zero:
        model, config = task.export_model()
        with disk_may_fail(task.run_folder.model, "the earlier export stays, training goes on", every_time=True):
            save_bundle(model, config, task.run_folder.path, state_dict=state)
    # no rank reads the files before they are there
    return trainer.strategy.broadcast(task.run_folder.model not in unwritten)
