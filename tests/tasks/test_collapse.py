"""A collapse is provoked in three ways, and each is named; a healthy run is left alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import fit_quietly
from tiny_ssl import ssl_data, ssl_task
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.metrics.collapse import diagnose
from visionzoo.models.ssl.views import ViewLoss
from visionzoo.runs import RunFolder
from visionzoo.tasks.engine.collapse import Watch
from visionzoo.tasks.engine.loggers import MetricsFile
from visionzoo.tasks.ssl import SslTask

pytestmark = pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")
DINO: dict[str, Any] = {"freeze_last_epochs": 0, "warmup_teacher_epochs": 0, "lr": 5e-3}


def fit(module: SslTask, case: str, folder: Path, on_collapse: Any = "stop", every: int = 10, **trainer: Any) -> Watch:
    watch = Watch(every, on_collapse)
    data = ssl_data(case, train_limit=512, **({"small_views": 0} if case == "dino" else {}))
    given = {"max_epochs": 5, "max_steps": 40, "limit_val_batches": 0, "callbacks": [watch], **trainer}
    fit_quietly(module, data, folder, **given)
    return watch


def without_stop_gradient() -> SslTask:
    """A student whose targets are its own, and get a gradient."""
    module = ssl_task("simclr")
    network = module.model
    network.projector = nn.Linear(64, 32)

    def loss(views: list[Tensor], gather: Any = None, hidden: Any = None) -> ViewLoss:
        del gather, hidden
        first, second = (network.projector(x) for x in network.pooled(views))
        return ViewLoss(2 - 2 * F.cosine_similarity(first, second).mean())

    network.loss = loss  # type: ignore[method-assign,assignment]
    return module


@pytest.mark.slow
def test_no_centring_is_named(tmp_path: Path) -> None:
    module = ssl_task("dino", **DINO, teacher_temperature=0.04)
    module.model.remember = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"seen since step 10: the teacher gives all images the same prototype.*centr"):
        fit(module, "dino", tmp_path)


@pytest.mark.long
def test_no_stop_gradient_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all images get nearly the same features .*no stop-gradient"):
        fit(without_stop_gradient(), "simclr", tmp_path)


@pytest.mark.slow
def test_a_temperature_that_is_too_low_is_named(tmp_path: Path) -> None:
    low = {"teacher_temperature": 0.001, "warmup_teacher_temperature": 0.001}
    with pytest.raises(ValueError, match=r"no doubt about any image.*model.teacher_temperature is too low"):
        fit(ssl_task("dino", **DINO, **low), "dino", tmp_path / "dino")
    with pytest.raises(ValueError, match=r"told from .* others only, of 255: model.temperature is too low"):
        fit(ssl_task("simclr", temperature=0.001), "simclr", tmp_path / "simclr")


@pytest.mark.long
def test_a_healthy_run_is_left_alone_and_leaves_curves(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    watch = fit(ssl_task("dino", lr=5e-4), "dino", run.path, logger=MetricsFile(run.metrics_csv), max_steps=20)
    assert watch.sightings < 2
    with run.metrics_csv.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("watch/spread")]
    assert [row["step"] for row in rows] == ["0", "9", "19"]
    names = {"alignment", "uniformity", "effective_rank", "dead_share", "knn_accuracy", "teacher_gap"}
    assert {f"watch/{name}" for name in names | {"teacher_entropy", "prototype_entropy"}} <= set(rows[0])
    assert float(rows[0]["watch/teacher_gap"]) == pytest.approx(0, abs=1e-6)


class Told(Watch):
    """Sees a collapse from step 6 on."""

    def _measure(self, trainer: Any, module: Any) -> dict[str, float]:
        return {"spread": 0.3 if trainer.global_step < 6 else 1e-4, "images": 256.0}


def follow(folder: Path, on_collapse: Any, **trainer: Any) -> SslTask:
    """Four steps an epoch, looked at after every second."""
    module = ssl_task("moco")
    given = {"callbacks": [Told(2, on_collapse)], "max_epochs": 4, "limit_val_batches": 0, **trainer}
    fit_quietly(module, ssl_data("moco"), folder, **given)
    return module


@pytest.mark.long
def test_a_run_may_go_back_once_or_on(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=r"since step 6.* Weights and optimizer are back at those of .*\(step 4\)"),
        pytest.raises(ValueError, match="also after going back"),
    ):
        follow(tmp_path / "back", "back")
    with pytest.raises(ValueError, match="and there is no checkpoint from before"):
        follow(tmp_path / "none", "back", every_n_steps=1)  # the last one is from after it began
    with pytest.warns(UserWarning, match="collapsed, seen since step 6"):
        follow(tmp_path / "warn", "warn")


def test_the_state_of_the_watch_is_in_checkpoints(tmp_path: Path) -> None:
    watch = fit(ssl_task("dino", lr=5e-4), "dino", tmp_path, max_steps=10)
    stored = torch.load(RunFolder(tmp_path).last, weights_only=True)["callbacks"][watch.state_key]
    again = Watch(10)
    again.load_state_dict(stored)
    assert again.start == watch.start
    assert "lowest_entropy" in again.start
    with pytest.raises(ValueError, match="watch_images=1 must be at least 2"):
        ssl_task(watch_images=1)


def test_diagnoses() -> None:
    start = {"spread": 0.2, "teacher_entropy": 0.8, "lowest_entropy": 0.5}
    healthy = {"spread": 0.3, "teacher_entropy": 0.4, "prototype_entropy": 0.9}
    assert diagnose(healthy, start, 256) == ""
    assert "sharpening is lost" in diagnose({**healthy, "teacher_entropy": 0.999}, start, 256)
    assert (
        diagnose({**healthy, "teacher_entropy": 0.999}, {**start, "lowest_entropy": 0.99}, 256) == ""
    )  # not yet begun
    trained = {"spread": 0.3, "negatives": 2.0}  # near twins in the data
    assert diagnose(trained, {"spread": 0.2, "negatives": 200.0}, 256) == ""
    assert "temperature is too low" in diagnose(trained, {"spread": 0.2, "negatives": 1.5}, 256)
    assert "nearly the same features" in diagnose({"spread": 0.001}, {"spread": 0.2}, 256)
