"""``--trainer.logger`` in Lightning's spellings: beside ours, not in their place; and what a wrong one is told."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from visionzoo.cli import train as cli
from visionzoo.cli.options import LOGGERS


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(*options: str) -> int:
    small = ["--model.backbone=vit_nano_patch4_32", "--model.image_size=16", "--data.num_workers=0"]
    data = ["--data.path=digits", "--data.train_limit=32", "--data.batch_size=16", "--data.eval_batch_size=256"]
    length = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1"]
    return cli.run(["classify", "fit", *small, *data, *length, "--run_dir=run", *options])


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs"],
        ["--trainer.logger=pytorch_lightning.loggers.CSVLogger", "--trainer.logger.init_args.save_dir=logs"],
        ["--trainer.logger", '[{"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}]'],
    ],
)
def test_a_logger_of_ones_own_comes_beside_metrics_csv(options: list[str]) -> None:
    assert fit(*options) == 0
    (theirs,) = Path("logs").rglob("metrics.csv")
    for file in (Path("run/metrics.csv"), theirs):
        with file.open() as opened:
            assert any(row["val/accuracy"] for row in csv.DictReader(opened))
    assert list(Path("run").glob("events*"))
    (options_file,) = Path("logs").rglob("hparams.yaml")
    assert yaml.safe_load(options_file.read_text())["backbone"] == "vit_nano_patch4_32"


@pytest.mark.parametrize("given", ["wandb", "csv", "CSVLoger"])
def test_a_wrong_one_gets_the_spellings_that_work(given: str, capsys: Any) -> None:
    assert fit("--trainer.logger", given) == 2
    error = capsys.readouterr().err
    assert f"there is no logger {given}; write a class and its options, such as --trainer.logger CSVLogger" in error
    assert "WandbLogger (pip install wandb)" in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def test_one_whose_package_is_missing_gets_its_name(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(LOGGERS, "WandbLogger", "no-such-package")
    assert fit("--trainer.logger", "WandbLogger") == 2
    assert "--trainer.logger WandbLogger needs another package: pip install no-such-package" in capsys.readouterr().err


def test_data_path_is_asked_for(capsys: Any) -> None:
    assert cli.run(["classify", "fit", "--model.backbone", "vit_nano_patch4_32"]) == 2
    assert "--data.path is required: a folder of images" in capsys.readouterr().err
