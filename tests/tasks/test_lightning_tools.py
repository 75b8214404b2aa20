"""Our tasks under plain Lightning: checkpoints that need no arguments, loggers, other people's loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.tuner import Tuner
from test_accumulation import classify, clip, mae, segment
from torch.utils.data import DataLoader, Dataset

from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.classifier import create_classifier
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.clip import ClipTask
from visionzoo.tasks.engine.ema import EMA
from visionzoo.tasks.engine.loggers import Events
from visionzoo.tasks.mae import MaeTask
from visionzoo.tasks.options import settled_changes
from visionzoo.tasks.segment import SegmentTask

pytestmark = pytest.mark.filterwarnings("ignore")


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**{"max_epochs": 1, "accelerator": "cpu", "logger": False, **quiet, **options})


def assert_same(a: VisionTask, b: VisionTask) -> None:
    assert type(a) is type(b)
    assert a.preprocess == b.preprocess
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("make", [classify, mae, clip, segment])
def test_a_checkpoint_needs_no_arguments(make: Callable[[int, int], tuple[Any, Any]], tmp_path: Path) -> None:
    task, data = make(8, 4)
    loop = trainer(limit_val_batches=0, use_distributed_sampler=False)
    loop.fit(task, datamodule=data)
    loop.save_checkpoint(tmp_path / "x.ckpt")
    torch.load(tmp_path / "x.ckpt", weights_only=True)  # plain types alone
    assert_same(task, type(task).load_from_checkpoint(tmp_path / "x.ckpt"))


def saved(task: VisionTask, path: Path) -> Path:
    loop = trainer()
    loop.strategy.connect(task)
    loop.save_checkpoint(path)
    return path


def started(folder: Path) -> str:
    """A run with its own size and image statistics."""
    model = create_classifier("vit_nano_patch4_32", 3, image_size=16)
    spec = type(model.preprocess)(image_size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    config = ModelConfig(task="classify", architecture=model.architecture, preprocess=spec, labels=("a", "b", "c"))
    save_bundle(model, config, folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ClassifyTask, {"num_classes": 3, "classes": "cab", "class_counts": [5, 2, 1], "class_weights": "balanced"}),
        (ClassifyTask, {"num_classes": 2, "finetune": "lora", "lora_rank": 2}),
        (ClipTask, {"text": "nano", "text_width": 32, "text_heads": 2, "context_length": 8}),
    ],
)  # fmt: skip
def test_what_it_started_from_may_be_gone(kind: type[VisionTask], options: dict[str, Any], tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    task = kind(weights=run, **options)
    path = saved(task, tmp_path / "x.ckpt")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    again = kind.load_from_checkpoint(path)
    assert_same(task, again)
    if isinstance(task, ClassifyTask):
        assert again.classes == task.classes
        assert (task.class_weights is None) or torch.equal(task.class_weights, again.class_weights)


def test_options_given_anew_win(tmp_path: Path) -> None:
    path = saved(classify(8, 4)[0], tmp_path / "x.ckpt")
    assert ClassifyTask.load_from_checkpoint(path, lr=0.5).lr == 0.5


def test_a_checkpoint_with_objects_is_not_read(tmp_path: Path) -> None:
    path = saved(classify(8, 4)[0], tmp_path / "x.ckpt")
    torch.save({**torch.load(path, weights_only=True), "object": Path("x")}, path)
    with pytest.raises(Exception, match="Weights only load failed"):
        ClassifyTask.load_from_checkpoint(path)


def test_loggers_record_the_options(tmp_path: Path) -> None:
    task, data = classify(8, 4)
    log, events = CSVLogger(tmp_path), Events(tmp_path / "run")
    trainer(logger=[log, events], limit_val_batches=0, use_distributed_sampler=False).fit(task, datamodule=data)
    assert "backbone: vit_nano_patch4_32" in (Path(log.log_dir) / "hparams.yaml").read_text()
    assert not (tmp_path / "run").exists()  # before it is opened
    events.open()
    events.experiment.flush()
    written = b"".join(p.read_bytes() for p in (tmp_path / "run").glob("events*"))
    assert b"vit_nano_patch4_32" in written


class Pairs(Dataset):
    """(image, label) as torchvision's sets give them."""

    def __init__(self, dtype: torch.dtype = torch.uint8, label: Any = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (8, 3, 16, 16), generator=generator).to(dtype)
        self.label = label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.images[i], i % 3 if self.label is None else self.label


def test_image_and_label_are_a_batch() -> None:
    torch.manual_seed(0)
    task = ClassifyTask(backbone="vit_nano_patch4_32", image_size=16, num_classes=3, lr=1e-3)
    loop = trainer()
    loop.fit(task, DataLoader(Pairs(), batch_size=4), DataLoader(Pairs(), batch_size=4))
    assert {"train/loss", "val/loss", "val/accuracy"} <= set(loop.callback_metrics)
    assert sum(len(p) for p in loop.predict(task, DataLoader(Pairs(), batch_size=4))) == 8


def test_other_tasks_take_pairs_too() -> None:
    torch.manual_seed(0)
    small = {"backbone": "vit_nano_patch4_32", "image_size": 16}
    trainer().fit(MaeTask(**small, decoder_dim=32, decoder_depth=1, decoder_heads=2), DataLoader(Pairs(), batch_size=4))
    trainer().fit(ClipTask(**small, text="nano", context_length=8), DataLoader(Pairs(label="a cat"), batch_size=4))


@pytest.mark.parametrize(
    ("task", "data", "said"),
    [
        ("classify", Pairs(torch.float32), "uint8 in 0..255, got .* torch.float32.*PILToTensor"),
        ("classify", Pairs(label="cat"), r"ImageBatch, or \(images, labels\); got \(Tensor, list|tuple\)"),
        ("segment", Pairs(), r"SegmentBatch, got \(Tensor, Tensor\)"),
    ],
)
def test_other_batches_are_refused_with_the_type(task: str, data: Any, said: str) -> None:
    module = classify(8, 4)[0] if task == "classify" else SegmentTask(
        backbone="vit_nano_patch4_32", image_size=32, embedding_stride=8, decoder_dim=16, encoder="full"
    )  # fmt: skip
    with pytest.raises(ValueError, match=said):
        trainer().fit(module, DataLoader(data, batch_size=4))


def test_a_plain_trainer_averages_weights_when_asked_to() -> None:
    task, data = classify(8, 4)[0], DataLoader(Pairs(), batch_size=4)
    averaging = ClassifyTask(backbone="vit_nano_patch4_32", image_size=16, num_classes=10, ema_decay=0.9)
    for module, count in ((task, 0), (averaging, 1)):
        loop = trainer()
        loop.fit(module, data)
        assert sum(isinstance(c, EMA) for c in loop.callbacks) == count


def test_a_learning_rate_for_256_images_knows_the_loader() -> None:
    task = ClassifyTask(backbone="vit_nano_patch4_32", image_size=16, num_classes=10, base_lr=0.64)
    loop = trainer()
    loop.fit(task, DataLoader(Pairs(), batch_size=4))
    assert loop.optimizers[0].param_groups[0]["initial_lr"] == 0.01


@pytest.mark.parametrize("make", [classify, mae, clip, segment])
def test_what_is_settled_are_options_and_the_rest_may_change(make: Callable[[int, int], tuple[Any, Any]]) -> None:
    task, _ = make(8, 4)
    assert task.settled <= set(task.hparams)
    checkpoint: dict[str, Any] = {}
    task.on_save_checkpoint(checkpoint)
    then, built = checkpoint["options"], checkpoint["hyper_parameters"]
    now = dict(task.hparams)
    assert settled_changes(then, built, now, task.settled) == []
    assert settled_changes(then, built, {**now, "lr": 7, "drop_path": 0.5}, task.settled) == []
    assert settled_changes(then, built, {**now, "weights": "other"}, task.settled) == ["weights was None and is other"]
    for name in task.settled:
        assert settled_changes(then, built, {**now, name: "another"}, task.settled)
        assert settled_changes(then, built, {**now, name: built[name]}, task.settled) == []  # as it came to be


class Reads(pl.Callback):
    """What a callback is shown after each batch, and what it was."""

    def __init__(self) -> None:
        self.shown: list[float] = []
        self.true: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.shown.append(float(trainer.callback_metrics["train/loss"]))
        self.true.append(float(outputs["loss"]))


def small(kind: type[ClassifyTask] = ClassifyTask, **options: Any) -> ClassifyTask:
    torch.manual_seed(0)
    return kind(**{"backbone": "vit_nano_patch4_32", "image_size": 16, "num_classes": 3, "lr": 1e-3, **options})


def test_callbacks_see_the_loss_of_every_step(tmp_path: Path) -> None:
    reads = Reads()
    best = ModelCheckpoint(tmp_path, monitor="train/loss", save_top_k=-1, every_n_train_steps=1, filename="{step}")
    loop = trainer(callbacks=[reads, best], enable_checkpointing=True, max_epochs=2, log_every_n_steps=3)
    loop.fit(small(), DataLoader(Pairs(), batch_size=2))
    assert reads.shown == reads.true
    assert len(list(tmp_path.iterdir())) == 8


def test_a_trainer_that_logs_nothing_goes_on_so() -> None:
    log = Mock(spec=CSVLogger)
    loop = trainer(logger=log, log_every_n_steps=0)
    loop.fit(small(), DataLoader(Pairs(), batch_size=4))
    assert loop.log_every_n_steps == 0
    assert not any("train/loss" in call.kwargs.get("metrics", {}) for call in log.log_metrics.call_args_list)


class OwnStep(ClassifyTask):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.model(self.normalize(images)), labels)


def test_a_training_step_of_ones_own_starts_from_no_gradient() -> None:
    ours, own = small(label_smoothing=0.0), small(OwnStep)
    for task in (ours, own):
        trainer(accumulate_grad_batches=2).fit(task, DataLoader(Pairs(), batch_size=2))
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], tensor)


class OneCycle(ClassifyTask):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()["optimizer"]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class NoSchedule(ClassifyTask):
    def configure_optimizers(self) -> Any:
        return super().configure_optimizers()["optimizer"]


@pytest.mark.parametrize("kind", [OneCycle, NoSchedule])
def test_our_optimizer_with_another_schedule(kind: type[ClassifyTask]) -> None:
    loop = trainer()
    loop.fit(small(kind), DataLoader(Pairs(), batch_size=4))
    assert loop.global_step == 2


def test_lightning_finds_a_learning_rate(tmp_path: Path) -> None:
    found = Tuner(trainer(default_root_dir=tmp_path, max_epochs=5)).lr_find(
        small(), DataLoader(Pairs(), batch_size=2), num_training=8, early_stop_threshold=None
    )
    assert found is not None
    rates = found.results["lr"]
    assert rates == sorted(rates)
    assert rates[0] < 1e-6 < 0.1 < rates[-1]


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.model.blocks)  # type: ignore[union-attr]

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.model.blocks, optimizer, lr=1e-4)  # type: ignore[union-attr]


class Kept(pl.Callback):
    """A checkpoint at the end of the third epoch, and a weight when training starts."""

    name = "model.blocks.0.mlp.fc1.weight"

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = pl_module.state_dict()[self.name].clone()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_callback_unfreezes_layers_and_goes_on(decay: float, tmp_path: Path) -> None:
    file, data = tmp_path / "x.ckpt", DataLoader(Pairs(), batch_size=4)
    first = Kept(file)
    loop = trainer(max_epochs=4, callbacks=[Unfreeze(), first])
    loop.fit(small(ema_decay=decay), data, data)
    assert loop.optimizers[0].param_groups[-1]["lr"] == 1e-4
    stored = torch.load(file, weights_only=True)
    trained = stored.get("ema_trained", stored["state_dict"])[Kept.name]
    assert not torch.equal(trained, first.start)
    assert torch.equal(trained, stored["state_dict"][Kept.name]) == (not decay)
    again = Kept(file)
    trainer(max_epochs=4, callbacks=[Unfreeze(), again]).fit(small(ema_decay=decay), data, data, ckpt_path=file)
    assert torch.equal(again.start, trained)
