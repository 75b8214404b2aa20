"""What a task, its network and its data must have is said before training, all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import visionzoo as vz
from visionzoo.cli.tasks import TASKS, TaskEntry, register_task
from visionzoo.data.module import VisionData
from visionzoo.models.bundle import ModelConfig, register_builder
from visionzoo.tasks.contract import DATA, STEP, TASK, check_data, check_task, unwritten


class Data(VisionData):
    train_source = val_source = None

    def training_set(self, source: Any) -> Any: ...
    def evaluation_set(self, source: Any) -> Any: ...
    def fingerprint(self) -> str:
        return ""


class Empty(vz.VisionTask):
    pass


class Whole(vz.VisionTask):
    task_name, monitor = "classify", "val/loss"

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        model = vz.create_classifier("vit_nano_patch4_32", 2)
        self.architecture = architecture
        self.use_model(model)

    def train_loss(self, batch: Any) -> vz.LossPart: ...  # type: ignore[empty-body]
    def update_evaluation(self, batch: Any) -> None: ...
    def finish_evaluation(self) -> dict[str, Tensor]: ...  # type: ignore[empty-body]
    def export_model(self) -> tuple[nn.Module, ModelConfig]:
        return self.model, ModelConfig(task="classify", architecture=self.architecture, preprocess=self.preprocess)


GOOD = {"backbone": "vit_nano_patch4_32", "num_classes": 2}


def test_everything_that_a_task_lacks_is_one_error() -> None:
    with pytest.raises(ValueError, match="the task Empty lacks") as error:
        check_task(Empty())
    for part in (*(f"{name} ({what})" for name, what in TASK.items()), STEP):
        assert part in str(error.value)


def test_a_task_that_has_it_all_passes() -> None:
    class InParts(Whole):
        train_loss = vz.VisionTask.train_loss

        def loss_parts(self, batch: Any, size: int | None) -> Any: ...

    check_task(Whole(GOOD))
    check_task(InParts(GOOD))
    check_data(Data.__new__(Data))


def test_data_are_checked() -> None:
    class Nothing(VisionData):
        pass

    with pytest.raises(ValueError, match="the data Nothing lacks") as error:
        check_data(Nothing.__new__(Nothing))
    assert "training_set" in unwritten(DATA)
    for name in unwritten(DATA):
        assert f"{name} (" in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"num_classes": 2}, "lacks backbone"),
        ({**GOOD, "colour": 1}, "unknown argument 'colour'"),
        ({**GOOD, "drop_rate": torch.float16}, "cannot be written as JSON"),
    ],
)
def test_a_model_that_could_not_be_read_back_is_refused(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"what Whole.export_model gives") as error:
        check_task(Whole(architecture))
    assert message in str(error.value)


def test_a_plain_network_is_told_what_it_lacks() -> None:
    task = Whole(GOOD)
    task.model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the network Linear lacks preprocess .*; stem_key .*set_grad_checkpointing"):
        check_task(task)


def test_a_plain_trainer_asks_first() -> None:
    task = Whole(GOOD)
    task.model = nn.Linear(2, 2)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(ValueError, match="the network Linear lacks"):
        trainer.fit(task, DataLoader([]))


def test_names_are_given_once() -> None:
    entry = TaskEntry(summary="", task=Empty, data=Data)
    for name in ("classify", "mae", "Not a name", "-x"):
        with pytest.raises(ValueError, match=r"registered already|needs a name"):
            register_task(name, entry)
    with pytest.raises(ValueError, match="has a builder already"):
        register_builder("simmim", vz.create_simmim)
    assert list(TASKS) == ["classify", "clip", "segment", "mae", "ssl"]
