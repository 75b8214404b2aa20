"""A run that is broken off and resumed ends where the run that never was ends, bit for bit."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from tiny_run import STEPS, Kill, Killed, Run, run_training

EPOCHS = 3
RANDOM = {"drop_path": 0.2, "drop_rate": 0.1, "mixup": 0.4, "cutmix": 1.0, "ema_decay": 0.9, "warmup_steps": 4}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


pytestmark = pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_training(tmp_path_factory.mktemp("whole"), epochs=EPOCHS, every_n_steps=2, **RANDOM)


@pytest.mark.long
@pytest.mark.parametrize(
    ("killed_at", "saved_at"),
    [(STEPS + 1, STEPS), (STEPS + 3, STEPS + 2), (2 * STEPS, 2 * STEPS - 2), (3, 2)],
    ids=["epoch end", "mid-epoch", "last batch of an epoch", "first epoch"],
)
def test_resume_is_bit_equal(
    train: Callable[..., Run], whole: Run, tmp_path: Path, killed_at: int, saved_at: int
) -> None:
    with pytest.raises(Killed):
        train("cut", epochs=EPOCHS, every_n_steps=2, callbacks=[Kill(killed_at)], **RANDOM)
    last = tmp_path / "cut" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == saved_at

    resumed = train("cut", epochs=EPOCHS, every_n_steps=2, resume=last, **RANDOM)

    assert resumed.losses == {s: v for s, v in whole.losses.items() if s > saved_at}
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name
    assert rows(resumed.folder.metrics_csv) == rows(whole.folder.metrics_csv)
    theirs = load_file(resumed.folder.model)
    for name, tensor in load_file(whole.folder.model).items():
        assert torch.equal(tensor, theirs[name]), name


def test_resume_with_accumulation_saves_on_step_boundaries(train: Callable[..., Run]) -> None:
    setup = {"epochs": 2, "every_n_steps": 1, "trainer": {"accumulate_grad_batches": 2}}
    whole = train("whole", **setup)
    with pytest.raises(Killed):
        train("cut", callbacks=[Kill(2)], **setup)
    last = whole.folder.path.parent / "cut" / "last.ckpt"
    resumed = train("cut", resume=last, **setup)
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name


class StopAt(pl.Callback):
    """Tell training to stop after a batch, as ``max_time`` and callbacks of others do."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            trainer.should_stop = True


def test_a_stop_inside_a_window_of_batches_is_saved_at_its_end(train: Callable[..., Run]) -> None:
    setup: dict[str, Any] = {"min_lr": 1e-3, "epochs": 1}
    accumulate = {"accumulate_grad_batches": 2}
    whole = train("whole", trainer=accumulate, **setup)
    cut = train("cut", trainer=accumulate, callbacks=[StopAt(2)], **setup)  # the first of the second window
    assert cut.trainer.global_step == 2
    assert torch.load(cut.folder.last, weights_only=True)["global_step"] == 2
    resumed = train("cut", resume=cut.folder.last, trainer=accumulate, **setup)
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name


def test_a_validation_inside_an_epoch_that_stops_the_run_leaves_it_saved(train: Callable[..., Run]) -> None:
    from visionzoo.tasks.engine.stopping import Stopping

    stop = Stopping("val/accuracy", "max", 1)
    cut = train("cut", callbacks=[stop], epochs=1, lr=1e-12, trainer={"val_check_interval": 2})
    assert 0 < cut.trainer.global_step < STEPS
    assert torch.load(cut.folder.last, weights_only=True)["global_step"] == cut.trainer.global_step


def test_a_run_that_max_steps_broke_off_goes_on_with_the_rest_of_its_epoch(train: Callable[..., Run]) -> None:
    whole = train("whole", min_lr=1e-3)  # a flat schedule, which does not know how long the run is
    stop = {"max_steps": STEPS - 2}
    train("cut", min_lr=1e-3, trainer=stop)
    last = whole.folder.path.parent / "cut" / "last.ckpt"
    resumed = train("cut", min_lr=1e-3, resume=last)
    assert resumed.losses == {s: v for s, v in whole.losses.items() if s > STEPS - 2}
    seen = rows(resumed.folder.metrics_csv)
    end = next(row for row in seen if row["step"] == str(STEPS - 3) and row["val/accuracy"])  # the judgement of the cut
    assert [row for row in seen if row is not end] == rows(whole.folder.metrics_csv)


def test_checkpoint_of_another_task_or_a_newer_schema_is_refused(train: Callable[..., Run]) -> None:
    run = train(epochs=1)
    for key, value, text in (("task", "mae", "belongs to the task 'mae'"), ("schema_version", 999, "schema 999")):
        checkpoint = torch.load(run.folder.last, weights_only=True)
        path = run.folder.path / f"{key}.ckpt"
        torch.save({**checkpoint, key: value}, path)
        with pytest.raises(ValueError, match=text):
            train("other", resume=path)
