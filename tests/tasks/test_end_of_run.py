"""The weights at the end of a run are judged, wherever it ends; and the last line says whose score it is."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from tiny_run import STEPS, Run

from visionzoo.cli import train as cli
from visionzoo.tasks.engine.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row.get("val/accuracy")]


@pytest.mark.parametrize(
    ("stop", "steps"),
    [
        ({"max_steps": STEPS - 2, "max_epochs": -1}, [STEPS - 3]),
        ({"max_steps": STEPS + 2, "max_epochs": -1}, [STEPS - 1, STEPS + 1]),
        ({"check_val_every_n_epoch": 2, "max_epochs": 3}, [2 * STEPS - 1, 3 * STEPS - 1]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 4, "max_epochs": 1}, [3, STEPS - 1]),
    ],
)
def test_the_last_weights_are_judged(train: Callable[..., Run], stop: dict[str, Any], steps: list[int]) -> None:
    run = train(trainer=stop)
    assert [int(row["step"]) for row in rows(run.folder.metrics_csv)] == steps


class ByLoss(pl.Callback):
    """Choose by what surely gets better in a few steps."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.monitor, pl_module.monitor_mode = "val/loss", "min"


def test_they_can_be_the_best(train: Callable[..., Run]) -> None:
    options: dict[str, Any] = {"callbacks": [ByLoss()], "lr": 1e-4}
    run = train(trainer={"max_steps": STEPS + 2, "max_epochs": -1}, **options)
    losses = [float(row["val/loss"]) for row in rows(run.folder.metrics_csv)]
    assert losses[1] < losses[0]
    for name, tensor in load_file(run.folder.model).items():
        assert torch.equal(tensor, run.weights()[f"model.{name}"]), name
    # a run that goes on from last.ckpt, which was written before they were judged, knows of it
    options["callbacks"] = [ByLoss()]
    resumed = train(resume=run.folder.last, trainer={"max_steps": STEPS + 3, "max_epochs": -1}, **options)
    best = next(c for c in resumed.trainer.callbacks if isinstance(c, Checkpoints))
    assert best.best is not None
    assert best.best <= losses[1]


def test_the_last_line_says_which_epoch_it_speaks_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model.backbone=vit_nano_patch4_32", "--model.image_size=16", "--model.lr=1e-12"]
    data = ["--data.path=digits", "--data.train_limit=32", "--data.batch_size=16", "--data.num_workers=0"]
    short = ["--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1"]
    assert cli.run(["classify", "fit", *model, *data, *short, "--run_dir=run"]) == 0
    assert "\nbest epoch, 1 of 3: top-1 accuracy" in capsys.readouterr().out


@pytest.mark.long
def test_resuming_a_run_without_its_results_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As where it was killed after its last checkpoint."""
    monkeypatch.chdir(tmp_path)
    model = ["--model.backbone=vit_nano_patch4_32", "--model.image_size=16", "--model.ema_decay=0.9"]
    data = ["--data.path=digits", "--data.train_limit=32", "--data.batch_size=16", "--data.num_workers=0"]
    short = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1"]
    assert cli.run(["classify", "fit", *model, *data, *short, "--run_dir=run"]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("best epoch, 1 of 1"))
    results = {p.name: p.read_bytes() for p in Path("run").iterdir() if p.suffix in (".png", ".csv")}
    assert {"confusion_matrix.png", "mistakes.png", "per_class.csv", "curves.png"} < results.keys()
    for name in results:
        if name != "metrics.csv":
            Path("run", name).unlink()
    assert cli.run(["classify", "fit", "--resume=run"]) == 0
    out = capsys.readouterr().out
    assert "nothing was left to train" in out
    assert said in out
    for name, content in results.items():
        if name != "curves.png":  # which may hold the time
            assert Path("run", name).read_bytes() == content, name
    assert Path("run/curves.png").is_file()
