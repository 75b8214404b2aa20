"""What is said of a training whose output is a file."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visionzoo.tasks.engine import progress
from visionzoo.tasks.engine.progress import MinuteLines


def test_a_line_a_minute_where_an_epoch_is_long(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    trainer: Any = SimpleNamespace(
        fit_loop=SimpleNamespace(total_batch_idx=-1),
        world_size=1,
        is_global_zero=True,
        accumulate_grad_batches=1,
        estimated_stepping_batches=100,
        global_step=0,
        callback_metrics={"train/loss": torch.tensor(2.5)},
    )
    lines, batch, module = MinuteLines(), SimpleNamespace(images=range(8)), SimpleNamespace()
    lines.on_train_start(trainer, module)  # type: ignore[arg-type]
    lines.on_train_epoch_start(trainer, module)  # type: ignore[arg-type]
    for step in range(15):
        clock.now += 10.0
        trainer.global_step, trainer.fit_loop.total_batch_idx = step + 1, step
        lines.on_train_batch_end(trainer, module, None, batch, step)  # type: ignore[arg-type]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "step 6 of 100  loss 2.5  1 images/s  0:15:40 left",
        "step 12 of 100  loss 2.5  1 images/s  0:14:40 left",
    ]
    clock.now += 55
    lines.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]
    clock.now += 10
    lines.on_train_batch_end(trainer, module, None, batch, 15)  # type: ignore[arg-type]
    assert not re.search("step", capsys.readouterr().out), "the epoch's own line was a moment ago"
