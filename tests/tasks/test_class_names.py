"""Classes are matched by name: between a run and data, in every command."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import take

from visionzoo.cli import train as cli
from visionzoo.models.bundle import ModelConfig, read_config, save_bundle
from visionzoo.models.classifier import create_classifier
from visionzoo.tasks.class_names import class_difference
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.types import ImageBatch

Tree = Callable[..., Path]
SMALL = ["--data.num_workers", "0", "--data.batch_size", "4", "--trainer.accelerator", "cpu", "--data.crop", "resize"]
NEW = ["--model.backbone", "vit_nano_patch4_32", "--model.image_size", "16", "--trainer.max_epochs", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tree(name: str, *classes: str, counts: tuple[int, ...] = (4, 4, 4)) -> str:
    for c, (label, count) in enumerate(zip(classes, counts, strict=True)):
        for split in ("train", "val"):
            folder = Path(name) / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((16, 16, 3), 40 * c + i, np.uint8)).save(folder / f"{i}.png")
    return name


def bundle(name: str, *labels: str, multi_label: bool = False) -> str:
    """A run whose model answers the first of its labels to everything."""
    model = create_classifier("vit_nano_patch4_32", len(labels), image_size=16)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([5.0] + [-5.0] * (len(labels) - 1)))
    config = ModelConfig(
        task="classify",
        architecture=model.architecture,
        preprocess=model.preprocess,
        labels=labels,
        multi_label=multi_label,
    )
    save_bundle(model, config, name)
    return name


def run(command: str, data: str, *options: str) -> int:
    return cli.run(["classify", command, "--data.path", data, *SMALL, *options])


def test_the_same_classes_in_another_order_are_scored_right(capsys: Any) -> None:
    data = tree("data", "ant", "bee", "zebra", counts=(5, 2, 3))
    assert run("validate", data, "--model.weights", bundle("old", "zebra", "ant", "bee"), "--run_dir", "seen") == 0
    assert "top-1 accuracy 30.00 %" in capsys.readouterr().out  # the three zebras
    with Path("seen/per_class.csv").open() as file:
        recall = {row["class"]: float(row["recall"]) for row in csv.DictReader(file)}
    assert recall == {"zebra": 1.0, "ant": 0.0, "bee": 0.0}
    assert run("predict", data, "--model.weights", "old", "--run_dir", "said") == 0
    with Path("said/predictions.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"zebra"}


def test_what_comes_with_the_package_is_matched_by_name_too() -> None:
    turned = tuple(str(k) for k in reversed(range(10)))
    task = ClassifyTask(num_classes=10, classes=turned, weights="embedded:digits", finetune="head")
    assert task.class_places is not None
    assert task.class_places.tolist() == list(reversed(range(10)))
    other = ClassifyTask(num_classes=10, classes=tuple(f"bird{k}" for k in range(10)), weights="embedded:digits")
    with pytest.raises(ValueError, match="the data lack '0'"):
        other.setup("validate")


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_other_classes_are_refused_with_their_names(command: str, capsys: Any) -> None:
    data = tree("data", "big bird", "Cat", "dog")
    assert run(command, data, "--model.weights", bundle("old", "big bird", "cat", "dog"), "--run_dir", "seen") == 2
    error = capsys.readouterr().err
    assert "the data lack 'cat'; the weights do not know 'Cat'; perhaps 'Cat' for 'cat'" in error
    assert "\n" not in error.strip()
    assert not Path("seen").exists()


def test_fit_on_other_classes_starts_with_a_fresh_head_and_says_so() -> None:
    old = bundle("old", "big bird", "cat", "dog")
    task = ClassifyTask(num_classes=3, classes=("big bird", "dog", "zebra"), weights=old)
    assert not torch.equal(task.model.head.bias, torch.tensor([5.0, -5.0, -5.0]))
    with pytest.warns(UserWarning, match="the head starts afresh.*lack 'cat'.*'zebra'"):
        task.setup("fit")
    same = ClassifyTask(num_classes=3, classes=("dog", "cat", "big bird"), weights=old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same.setup("fit")
    assert same.classes == ("big bird", "cat", "dog")


def test_training_on_reordered_classes_learns_the_right_ones() -> None:
    task = ClassifyTask(num_classes=3, classes=("dog", "cat", "bird"), weights=bundle("old", "bird", "cat", "dog"))
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    batch = ImageBatch(images, torch.tensor([2, 2]), torch.arange(2))  # birds, which it knows
    assert float(take(task, batch).loss.detach()) < 0.01
    counts = ClassifyTask(
        num_classes=3, classes=("dog", "cat", "bird"), weights="old", class_counts=[8, 2, 1], class_weights="balanced"
    )
    straight = ClassifyTask(
        num_classes=3, classes=("bird", "cat", "dog"), weights="old", class_counts=[1, 2, 8], class_weights="balanced"
    )
    assert torch.equal(counts.class_weights, straight.class_weights)


def test_labels_of_several_classes_are_reordered_too() -> None:
    old = bundle("old", "b", "c", "a", multi_label=True)
    task = ClassifyTask(num_classes=3, classes=("a", "b", "c"), multi_label=True, weights=old).eval()
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with torch.no_grad():
        task.update_evaluation(ImageBatch(images, torch.tensor([[0.0, 1, 0], [0, 1, 0]]), torch.arange(2)))
    assert float(task.finish_evaluation()["loss"]) < 0.01


@pytest.mark.long
def test_resuming_on_renamed_classes_is_refused_and_on_reordered_ones_goes_on(capsys: Any) -> None:
    data = tree("data", "bird", "cat", "dog")
    assert run("fit", data, *NEW, "--run_dir", "run") == 0
    before = {p.name: p.read_bytes() for p in Path("run").iterdir() if p.is_file()}
    Path("data/train/cat").rename("data/train/Cat")
    Path("data/val/cat").rename("data/val/Cat")
    more = ["--trainer.max_epochs", "2"]
    assert cli.run(["classify", "fit", "--resume", "run", *more]) == 2
    assert "perhaps 'Cat' for 'cat'" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in Path("run").iterdir() if p.is_file()} == before
    tree("again", "bird", "cat", "dog")
    options = ["--data.path", "again", "--data.classes", '["dog", "cat", "bird"]']
    assert cli.run(["classify", "fit", "--resume", "run", *more, *options]) == 0
    assert read_config("run").labels == ("bird", "cat", "dog")


def test_a_checkpoint_knows_its_classes_without_a_run_folder() -> None:
    data = tree("data", "bird", "cat", "dog")
    assert run("fit", data, *NEW, "--run_dir", "run") == 0
    alone = Path("run/last.ckpt").rename("alone.ckpt")
    known = ["--model.backbone", "vit_nano_patch4_32", "--model.image_size", "16", "--model.weights", str(alone)]
    assert run("validate", tree("other", "bird", "cow", "dog"), *known) == 2
    assert run("validate", data, *known) == 0


def test_weights_without_names_go_by_position() -> None:
    old = bundle("old", "a", "b", "c")
    record = json.loads(Path("old/config.json").read_text())
    Path("old/config.json").write_text(json.dumps({**record, "labels": []}))
    task = ClassifyTask(num_classes=3, classes=("x", "y", "z"), weights=old)
    task.setup("validate")
    assert task.classes == ("x", "y", "z")
    assert task.model.head.bias[0] == 5
    Path("old/config.json").write_text(json.dumps(record))
    unnamed = ClassifyTask(num_classes=3, weights=old)  # nobody names the data's: those of the weights are all there is
    unnamed.setup("validate")
    assert unnamed.classes == ("a", "b", "c")


def test_differences_are_short() -> None:
    assert class_difference(("a", "b"), ("b", "a")) == ""
    text = class_difference([f"class {i}" for i in range(20)], ["x"])
    assert "'class 4' and 15 more" in text
    assert text.endswith("the weights do not know 'x'")
