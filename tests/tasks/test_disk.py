"""A disk that fills up in the middle of a run: training goes on, and what is missing is said."""

from __future__ import annotations

import csv
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from visionzoo.cli import train as cli
from visionzoo.tasks.engine.disk import unwritten

FIT = ["classify", "fit", "--model.backbone=vit_nano_patch4_32", "--model.image_size=16", "--data.path=digits"]
FIT += ["--data.train_limit=32", "--data.batch_size=16", "--data.num_workers=0", "--trainer.accelerator=cpu"]
FIT += ["--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1", "--run_dir=run"]


@contextmanager
def no_file_grows(size: int = 1) -> Iterator[None]:
    """Writing beyond so many bytes of a file is an OSError, of the kernel's own making."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Full(pl.Callback):
    """The disk is full from the start of one epoch to that of another, both counted from 0; None for the end."""

    def __init__(self, first: int, freed: int | None) -> None:
        self.first, self.freed = first, freed
        self.limit = no_file_grows()

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.first:
            self.limit.__enter__()
        elif trainer.current_epoch == self.freed:
            self.limit.__exit__(None, None, None)


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int | None], None]]:
    """``full(first, freed)`` puts a :class:`Full` into the next run, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = cli.TrainCLI._callbacks

    def use(first: int, freed: int | None) -> None:
        monkeypatch.setattr(cli.TrainCLI, "_callbacks", lambda self, bar: [Full(first, freed), *whole(self, bar)])

    yield use
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    unwritten.clear()


def events() -> list[tuple[str, int]]:
    """(name, step) of every point."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = Path("run").glob("events.out.tfevents.*")
    return [(value.tag, e.step) for e in EventFileLoader(str(path)).Load() for value in e.summary.value]


def rows() -> list[dict[str, str]]:
    with open("run/metrics.csv") as file:
        return list(csv.DictReader(file))


def test_training_goes_on_and_catches_up(full: Any, capsys: Any, survived: Callable[..., None]) -> None:
    full(1, 3)
    with pytest.warns(UserWarning, match="could not write") as said:
        assert cli.run([*FIT, "--trainer.max_epochs=4"]) == 0
    messages = [str(w.message) for w in said]
    for name in ("last.ckpt", "metrics.csv", "events.out"):
        assert any(name in text and "training goes on" in text for text in messages), (name, messages)
    assert "metrics.csv could be written again" in capsys.readouterr().out
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 8
    assert [int(row["step"]) for row in rows() if row["train/loss"]] == list(range(8))  # kept in memory
    steps = {step for name, step in events() if name == "train/loss"}
    assert {0, 1, 6, 7} <= steps  # the file is whole, before and after
    assert not {3, 4} & steps
    survived("disk that is full for two epochs: training goes on, and catches up")


def test_full_to_the_end_is_said_by_the_exit(full: Any, capsys: Any, survived: Callable[..., None]) -> None:
    full(1, None)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert cli.run([*FIT, "--trainer.max_epochs=3"]) == 1
    captured = capsys.readouterr()
    assert "epoch 3/3" in captured.out
    assert captured.err.startswith("error: could not be written: ")
    assert "last.ckpt" in captured.err
    assert "--resume run" in captured.err
    assert captured.err.count("\n") == 1
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 2  # the former one is whole
    survived("disk that is full to the end of a run: the former checkpoint is whole, exit 1")


def test_full_from_the_start_is_one_line(full: Any, capsys: Any) -> None:
    with no_file_grows(), warnings.catch_warnings(record=True):
        assert cli.run([*FIT, "--trainer.max_epochs=3"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "run" in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("run").exists()
