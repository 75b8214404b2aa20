"""Losses and gradients that are not finite."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_run import STEPS, Kill, Killed, Run

from visionzoo.tasks.engine.guard import NonFinite


class Poison(pl.Callback):
    """Put a NaN into the gradient, or the loss, of given batches (counted over the run)."""

    def __init__(self, batches: set[int], what: str = "gradient") -> None:
        self.batches, self.what, self.seen = batches, what, -1
        self.before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.seen += 1
        if self.seen in self.batches and self.what == "loss":
            with torch.no_grad():
                module.normalize.shift.fill_(float("nan"))

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        if self.what == "loss":
            fresh = type(module.normalize)(module.preprocess, module.in_chans)
            module.normalize.shift.copy_(fresh.shift)

    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        if self.seen in self.batches and self.what == "gradient":
            self.before = {n: p.detach().clone() for n, p in module.named_parameters()}
            next(module.parameters()).grad[0] = float("inf")


class Unchanged(pl.Callback):
    """After a poisoned step the weights are those before it."""

    def __init__(self, poison: Poison) -> None:
        self.poison, self.checked = poison, 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        if self.poison.seen in self.poison.batches and self.poison.before:
            assert all(torch.equal(p, self.poison.before[n]) for n, p in module.named_parameters())
            self.checked += 1


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_samples(train: Callable[..., Run], what: str) -> None:
    poison, guard = Poison({2, 7}, what), NonFinite()
    same = Unchanged(poison)
    with pytest.warns(UserWarning, match=f"step 2 was left out: {what} is not finite"):
        run = train(callbacks=[poison, guard, same], weight_decay=0.3)
    assert guard.skipped == 2
    assert all(torch.isfinite(p).all() for p in run.task.parameters())
    listed = rows(run.folder.nonfinite)
    assert {(r["step"], r["epoch"], r["what"]) for r in listed} == {("2", "0", what), ("7", "1", what)}
    assert len(listed) == 2 * 16
    assert all(r["sample"].startswith("digits") for r in listed)
    assert same.checked == (2 if what == "gradient" else 0)


def test_many_in_a_row_go_back_once_and_learn_more_slowly(train: Callable[..., Run]) -> None:
    poison = Poison({STEPS + 1, STEPS + 2, STEPS + 3})
    seen: list[tuple[float, float]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
            last = torch.load(module.run_folder.last, weights_only=True) if module.run_folder.last.is_file() else None
            if poison.seen == STEPS + 3 and last is not None:
                key = "model.head.bias"
                stored = {**last["state_dict"], **last.get("ema_trained", {})}
                seen.append((float(stored[key][0]), float(module.state_dict()[key][0])))

    with pytest.warns(
        UserWarning, match="weights and optimizer are back at those of .*, and the learning rate goes on at 0.1"
    ):
        run = train(epochs=3, callbacks=[poison, NonFinite(limit=3), Watch()], ema_decay=0.5, lr=1e-3)
    assert seen
    assert seen[0][0] == seen[0][1]
    assert run.trainer.lr_scheduler_configs[0].scheduler.base_lrs == [1e-4, 1e-4]
    assert run.trainer.global_step == 3 * STEPS


def test_again_or_without_a_checkpoint_the_run_stops_with_the_evidence(train: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match=r"3 steps in a row .* there is no checkpoint yet; .*nonfinite.csv lists"):
        train("first", callbacks=[Poison({0, 1, 2}), NonFinite(limit=3)])
    with pytest.raises(ValueError, match="also after going back to the last checkpoint"):
        train("second", epochs=3, callbacks=[Poison(set(range(STEPS, 2 * STEPS))), NonFinite(limit=3)])


def test_the_count_survives_a_resume(train: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(Killed), pytest.warns(UserWarning, match="left out"):
        train("cut", every_n_steps=1, callbacks=[Poison({1}), NonFinite(), Kill(4)])
    guard = NonFinite()
    run = train("cut", resume=tmp_path / "cut" / "last.ckpt", callbacks=[Poison({0}), guard])
    assert guard.skipped == 2
    assert len(rows(run.folder.nonfinite)) == 2 * 16


def test_bad_limit() -> None:
    with pytest.raises(ValueError, match="max_nonfinite_steps=0 must be at least 1"):
        NonFinite(0)
