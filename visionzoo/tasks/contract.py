"""What a task and its data must have, checked before training and not after it."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from visionzoo.contract import missing_parts, refuse_missing
from visionzoo.data.module import VisionData
from visionzoo.models.bundle import ModelConfig
from visionzoo.tasks.interface import TaskInterface
from visionzoo.types import Preprocess

PAGE = "docs/add-a-task.md"
TASK: dict[str, str] = {
    "task_name": "the name it is registered by",
    "monitor": "the logged value that chooses the best weights, such as val/loss",
    "model": "the network, set by self.use_model(model)",
    "update_evaluation": "takes a held-out batch into account",
    "finish_evaluation": "scores of all held-out batches, by name",
    "export_model": "the network to write, and its ModelConfig",
}
#: What the network itself must have; visionzoo.EncoderModel has it.
NETWORK: dict[str, str] = {
    "preprocess": "how its images are prepared",
    "architecture": "keyword arguments that rebuild it, in JSON types",
    "weights_family": "which foreign layouts load_weights tries, such as timm",
    "head_prefixes": "keys that may keep their own values when other weights are loaded",
    "stem_key": "the weight whose second axis is the channels of images",
    "adapt_state_dict": "resamples position tables of another size",
    "set_grad_checkpointing": "saves memory in training",
}
#: A task writes one of these.
STEPS = ("train_loss", "loss_parts")
STEP = "train_loss (loss of a batch, as a LossPart; or loss_parts, where a batch can be taken apart)"
DATA: dict[str, str] = {
    "train_source": "the training samples, or None",
    "val_source": "the held-out samples, or None",
    "training_set": "a source -> data set of random views, and how they become a batch",
    "evaluation_set": "the same without chance",
    "fingerprint": "a hash of which samples are in which split",
}


def check_task(task: Any) -> None:
    """Raise ValueError with all that a task or its network lacks, and for a model that could not be exported."""
    if not isinstance(task, TaskInterface):
        raise ValueError(f"the task {type(task).__name__} must be a visionzoo.VisionTask; see {PAGE}")
    missing = missing_parts(task, TaskInterface, TASK)
    if len(missing_parts(task, TaskInterface, dict.fromkeys(STEPS, ""))) == len(STEPS):
        missing.append(STEP)
    refuse_missing(f"the task {type(task).__name__}", missing, PAGE)
    refuse_missing(f"the network {type(task.model).__name__}", missing_parts(task.model, nn.Module, NETWORK), PAGE)
    if not type(task).__module__.startswith("visionzoo."):  # ours are tested, and copying adapters takes memory
        _check_export(task)


def check_data(data: Any) -> None:
    """Raise ValueError with all that a data module of the command line lacks."""
    if not isinstance(data, VisionData):
        raise ValueError(f"the data {type(data).__name__} must be a visionzoo.data.module.VisionData; see {PAGE}")
    refuse_missing(f"the data {type(data).__name__}", missing_parts(data, VisionData, unwritten(DATA)), PAGE)


def unwritten(parts: dict[str, str]) -> dict[str, str]:
    """Those of ``parts`` that VisionData leaves to its subclasses."""
    ours = {name: getattr(VisionData, name, None) for name in parts}
    return {n: parts[n] for n, it in ours.items() if it is None or getattr(it, "__isabstractmethod__", False)}


def _check_export(task: TaskInterface) -> None:
    """Whether the exported model could be read back: a whole training is lost where it cannot."""
    name, exported = type(task).__name__, task.export_model()
    model, config = exported if isinstance(exported, tuple) and len(exported) == 2 else (None, None)
    if not isinstance(model, nn.Module) or not isinstance(config, ModelConfig):
        raise ValueError(f"{name}.export_model must give (network, ModelConfig), not {type(exported).__name__}; {PAGE}")
    if not isinstance(config.preprocess, Preprocess):
        raise ValueError(f"{name}.export_model must give a ModelConfig with a Preprocess; {PAGE}")
    origin = f"what {name}.export_model gives"
    try:
        values = json.loads(json.dumps(config.to_dict()))
    except TypeError as error:
        raise ValueError(f"{origin} cannot be written as JSON: {error}; {PAGE}") from error
    ModelConfig.from_dict(values, origin=origin)
