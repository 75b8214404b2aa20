"""The datamodule under a real trainer: loaders, ranks, and resuming in the middle of everything."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor, nn

from visionzoo.data.classify import ClassifyData, balanced_weights
from visionzoo.data.clip import ClipData
from visionzoo.data.mae import MaeData
from visionzoo.data.module import VisionData
from visionzoo.data.options import CaptionOptions, ClassificationOptions, SegmentationOptions, UnlabelledOptions
from visionzoo.data.segment import SegmentData
from visionzoo.types import ImageBatch, Preprocess

SPEC = Preprocess(image_size=(8, 8))

#: What was trained on in one step: epoch, batch index, sample positions, sum of all pixels.
Step = tuple[int, int, tuple[int, ...], int]


class Recorder(pl.LightningModule):
    """A model that writes down what it is given."""

    preprocess = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.steps: list[Step] = []
        self.seen: list[int] = []

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        step = (self.current_epoch, batch_idx, tuple(batch.index.tolist()), int(batch.images.long().sum()))
        self.steps.append(step)
        return self.layer(batch.images.float().mean((2, 3))).pow(2).mean()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.seen += batch.index.tolist()

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> list[int]:
        return batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


class SaveEverywhere(pl.Callback):
    """Checkpoints at every hook that people save at.

    Not at the start of an epoch: Lightning 2.6 itself loses that epoch when it resumes from there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save(self, trainer: pl.Trainer, hook: str) -> None:
        trainer.save_checkpoint(self.folder / f"{hook}-{trainer.global_step}.ckpt")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._save(trainer, "batch_end")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._save(trainer, "validation_end")

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._save(trainer, "epoch_end")


def make_trainer(**options: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "max_epochs": 3,
    }
    return pl.Trainer(**{**quiet, **options})


@pytest.fixture
def root(class_tree: Callable[..., Path]) -> Path:
    return class_tree({"train/cat": 12, "train/dog": 10, "val/cat": 3, "val/dog": 2, "test/cat": 1, "test/dog": 1})


@pytest.fixture
def data(root: Path) -> Callable[..., ClassifyData]:
    def make(**options: Any) -> ClassifyData:
        return ClassifyData(str(root), **{"batch_size": 4, "num_workers": 0, "magnitude": 10, **options})

    return make


def batches(module: ClassifyData) -> Iterator[ImageBatch]:
    module.preprocess = SPEC
    module.setup("fit")
    return iter(module.train_dataloader())


def test_what_the_data_are_is_known_at_birth(data: Callable[..., ClassifyData]) -> None:
    module = data()
    assert module.classes == ("cat", "dog")
    assert module.num_classes == 2
    assert not module.multi_label
    assert module.class_counts.tolist() == [12, 10]
    assert data(train_limit=11).class_counts.tolist() == [6, 5]
    assert data(train_limit=0.5).fingerprint() != module.fingerprint() == data().fingerprint()


def test_loaders_need_the_models_preprocess(data: Callable[..., ClassifyData]) -> None:
    with pytest.raises(ValueError, match="preprocess is not set"):
        data().train_dataloader()
    batch = next(batches(data()))
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.uint8


@pytest.mark.filterwarnings("error:.*your dataloader is not resumable")
@pytest.mark.parametrize("when", [{}, {"val_check_interval": 2}, {"limit_train_batches": 3}], ids=str)
def test_a_resumed_run_sees_exactly_what_was_left(
    data: Callable[..., ClassifyData], tmp_path: Path, when: dict[str, Any]
) -> None:
    whole = Recorder()
    make_trainer(callbacks=[SaveEverywhere(tmp_path)], **when).fit(whole, data())
    per_epoch = when.get("limit_train_batches", 5)
    assert len(whole.steps) == 3 * per_epoch
    assert len({step[2] for step in whole.steps}) == len(whole.steps)
    saved = sorted(tmp_path.glob("*.ckpt"))
    hooks = {path.stem.split("-")[0] for path in saved}
    assert hooks == {"batch_end", "validation_end", "epoch_end"}
    if when:
        saved = [path for path in saved if int(path.stem.split("-")[1]) in (per_epoch - 1, per_epoch)]
    for path in saved:
        resumed = Recorder()
        make_trainer(**when).fit(resumed, data(), ckpt_path=path, weights_only=True)
        done = int(path.stem.split("-")[1])
        assert resumed.steps == whole.steps[done:], path.name


@pytest.mark.long
def test_resuming_with_workers(data: Callable[..., ClassifyData], tmp_path: Path) -> None:
    whole = Recorder()
    make_trainer(callbacks=[SaveEverywhere(tmp_path)], max_epochs=2).fit(whole, data())
    for name in ("batch_end-2", "batch_end-7", "epoch_end-5"):
        resumed = Recorder()
        make_trainer(max_epochs=2).fit(
            resumed, data(num_workers=2), ckpt_path=tmp_path / f"{name}.ckpt", weights_only=True
        )
        assert resumed.steps == whole.steps[int(name.split("-")[1]) :], name


def test_a_changed_order_is_refused_only_in_mid_epoch(data: Callable[..., ClassifyData], tmp_path: Path) -> None:
    make_trainer(callbacks=[SaveEverywhere(tmp_path)], max_epochs=1).fit(Recorder(), data())
    with pytest.raises(ValueError, match=r"cannot go on at batch 2 of epoch 0: batch_size was 4 and is 5"):
        make_trainer().fit(Recorder(), data(batch_size=5), ckpt_path=tmp_path / "batch_end-2.ckpt", weights_only=True)
    later = Recorder()
    make_trainer(max_epochs=2).fit(
        later, data(batch_size=11), ckpt_path=tmp_path / "epoch_end-5.ckpt", weights_only=True
    )
    assert [len(step[2]) for step in later.steps] == [11, 11]


def test_a_second_fit_starts_again(data: Callable[..., ClassifyData]) -> None:
    module, one, two = data(), Recorder(), Recorder()
    make_trainer(max_epochs=1).fit(one, module)
    make_trainer(max_epochs=1).fit(two, module)
    assert one.steps == two.steps


def test_every_validation_image_is_seen_once(data: Callable[..., ClassifyData]) -> None:
    model = Recorder()
    make_trainer().validate(model, data(eval_batch_size=2), verbose=False)
    assert sorted(model.seen) == list(range(5))


def test_fit_works_without_validation_images(class_tree: Callable[..., Path]) -> None:
    module = ClassifyData(str(class_tree({"a": 4, "b": 4})), val_fraction=0.0, batch_size=4, num_workers=0)
    model = Recorder()
    make_trainer(max_epochs=1).fit(model, module)
    assert len(model.steps) == 2


@pytest.mark.filterwarnings("error:You are using a custom batch sampler")
def test_predict_gives_every_image_in_order(data: Callable[..., ClassifyData], class_tree) -> None:
    loose = class_tree({".": 7}, "loose")
    for module, count in ((data(predict_path=str(loose)), 7), (data(), 5)):
        rows = make_trainer().predict(Recorder(), module)
        assert rows is not None
        assert [i for row in rows for i in row] == list(range(count))


def test_test_scores_the_test_split_or_says_there_is_none(data: Callable[..., ClassifyData], class_tree) -> None:
    module = data()
    module.preprocess = SPEC
    assert sum(len(b.images) for b in module.test_dataloader()) == 2
    bare = ClassifyData(str(class_tree({"a": 4, "b": 4}, "bare")), num_workers=0)
    bare.preprocess = SPEC
    with pytest.raises(ValueError, match="no test split; use validate"):
        bare.test_dataloader()


def test_only_validation_images_can_be_scored_but_not_trained_on(class_tree: Callable[..., Path]) -> None:
    module = ClassifyData(str(class_tree({"val/a": 4, "val/b": 4}, "only")), num_workers=0)
    module.preprocess = SPEC
    assert module.class_counts.tolist() == [0, 0]
    assert sum(len(b.images) for b in module.val_dataloader()) == 8  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"no training images \(only images to evaluate on\)"):
        module.train_dataloader()


def test_balanced_sampling(class_tree: Callable[..., Path]) -> None:
    root = class_tree({"train/a": 60, "train/b": 4, "val/a": 1, "val/b": 1}, "uneven")
    module = ClassifyData(str(root), balanced_sampling=True, batch_size=16, num_workers=0)
    labels = torch.cat([batch.labels for epoch in range(3) for batch in batches_of(module, epoch)])
    assert 0.35 < labels.float().mean() < 0.65
    module.preprocess = SPEC
    shown = [image for batch in batches_of(module, 0) for image in batch.images[batch.labels == 1]]
    assert len(shown) > 16  # of four images; each time another view
    assert len({image.numpy().tobytes() for image in shown}) > len(shown) / 2
    targets = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=np.float32)
    module.splits.train.targets, module.splits.train.multi_label = targets, True  # type: ignore[union-attr]
    assert balanced_weights(module.splits.train).tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])  # type: ignore[arg-type]


def batches_of(module: ClassifyData, epoch: int) -> Iterator[ImageBatch]:
    module.preprocess = SPEC
    module.setup("fit")
    module.start = (epoch, 0)
    return iter(module.train_dataloader())


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", 0), ("num_workers", -1), ("eval_batch_size", 0), ("max_bad_share", 2.0), ("train_limit", 0),
     ("hflip", 2), ("val_fraction", -0.5)],
)  # fmt: skip
def test_options_are_checked_at_birth(class_tree: Callable[..., Path], option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        ClassifyData(str(class_tree({"a": 3, "b": 3})), **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [ClassifyData, MaeData, ClipData, SegmentData, VisionData])
def test_every_option_is_documented(cls: type) -> None:
    text = cls.__init__.__doc__ or ""
    for name in set(inspect.signature(cls).parameters):
        assert f"\n            {name}: " in text, name


@pytest.mark.parametrize("cls", [ClassificationOptions, UnlabelledOptions, CaptionOptions, SegmentationOptions])
def test_every_option_of_the_command_line_is_documented(cls: type) -> None:
    text = "".join(base.__doc__ or "" for base in cls.__mro__)
    for field in dataclasses.fields(cls):
        assert f"\n        {field.name}: " in text, field.name


@pytest.mark.parametrize("cls", [ClassifyData, MaeData, ClipData, SegmentData])
def test_the_command_line_knows_the_type_of_every_option(cls: type) -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(cls, "data")
    shown = parser.format_help()
    assert "Unvalidated" not in shown, "jsonargparse has not found a type"
    assert "--data.color_jitter COLOR_JITTER\n" in shown
    for wrong in (
        "--data.hflip=often",
        "--data.crop=half",
        "--data.crop_scale=0.5",
        "--data.worker_start_method=thread",
    ):
        with pytest.raises(Exception, match=wrong.partition("=")[0].removeprefix("--")):
            parser.parse_args(["--data.path=digits", wrong])
    assert parser.parse_args(["--data.path=digits", "--data.hflip=1"])["data"].hflip == 1.0
