"""Training on data that cannot be trusted, from the command line to the list of what was bad."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from hostile import HostileSet, hostile_folder, hostile_parquet, hostile_shard

from visionzoo.cli import train as cli

OPTIONS = """--model.backbone=vit_nano_patch4_32 --model.image_size=16 --data.path=set --data.batch_size=16
    --data.drop_last=false --data.num_workers=0 --trainer.accelerator=cpu --trainer.max_epochs=1 --run_dir=run"""
FIT = ["classify", "fit", *OPTIONS.split()]


@pytest.fixture
def dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostileSet:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return hostile_folder(tmp_path / "set")


def listed() -> list[dict[str, str]]:
    with Path("run/bad_samples.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_goes_on_and_lists_each_bad_sample_once(dirty: HostileSet, survived: Callable[..., None]) -> None:
    assert cli.run([*FIT, "--data.max_bad_share=0.9", "--trainer.max_epochs=2"]) == 0
    rows = listed()
    names = [os.fsencode(os.path.relpath(row["sample"], "set")) for row in rows]
    assert sorted(names) == sorted(dirty.bad)
    assert all(word in row["reason"] for row, word in zip(rows, map(dirty.bad.get, names), strict=True))
    assert {row["split"] for row in rows} == {"train"}
    assert Path("run/model.safetensors").is_file()
    survived("bad image file in a training set, listed once with its reason", len(rows))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_past_the_share_the_run_stops_with_the_list(dirty: HostileSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FIT, "--data.max_bad_share=0.05"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1
    assert f"of {dirty.count} training images could not be read, more than max_bad_share=0.05 allows" in said[0]
    assert len(listed()) > 0.05 * dirty.count


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_that_vanish_in_the_middle_of_an_epoch(
    dirty: HostileSet, survived: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[Path] = []

    class Vanish(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 2:
                gone.extend(sorted(Path("set/train/a").glob("0*.png"))[:20])
                for path in gone:
                    path.unlink()

    whole = cli.TrainCLI._callbacks
    monkeypatch.setattr(cli.TrainCLI, "_callbacks", lambda self, bar: [*whole(self, bar), Vanish()])
    assert cli.run([*FIT, "--data.max_bad_share=0.9", "--trainer.max_epochs=2"]) == 0
    reasons = {row["sample"]: row["reason"] for row in listed()}
    assert len(reasons) == len(dirty.bad) + len(gone) == len(listed())
    assert {reasons[str(path)] for path in gone} == {"no such file"}
    survived("image file that vanished in the middle of an epoch", len(gone))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["parquet", "shard"])
def test_tables_and_shards(dirty: HostileSet, survived: Callable[..., None], kind: str) -> None:
    options = [*FIT, "--data.max_bad_share=0.9"]
    if kind == "parquet":
        count = len(hostile_parquet(Path("set.parquet")))
        options += ["--data.path=set.parquet", "--data.val_path=set"]
    else:
        count = len(hostile_shard(Path("set.tar")))
        options[0] = "clip"
        options.remove("--model.image_size=16")
        options += ["--data.path=set.tar", "--model.text=nano", "--model.context_length=16"]
        options += ["--data.val_fraction=0", "--data.zero_shot_path=none"]
    assert cli.run(options) == 0
    assert len(listed()) == count
    survived(f"bad image in a {kind} file while training", count)
