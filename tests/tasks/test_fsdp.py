"""What FSDP asks of a task, without processes; those are in tests/reliability/test_fsdp_processes.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import tiny_task
from torch import nn

from visionzoo.tasks.engine.fsdp import FullySharded, _blocks, local


def test_only_what_can_be_sharded_is() -> None:
    asked: list[nn.Module] = []
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(shard=asked.append))
    task = tiny_task()
    task._trainer = trainer
    task.configure_model()
    assert asked == [task.model]
    for options in ({"ema_decay": 0.9}, {"finetune": "lora"}):
        task = tiny_task(**options)
        task._trainer = trainer
        with pytest.raises(ValueError, match="fsdp does not go with"):
            task.configure_model()
    assert len(asked) == 1


def test_units_are_blocks_and_checkpoints_are_whole() -> None:
    model = tiny_task().model
    assert [type(b).__name__ for b in _blocks(model)] == ["Block"] * len(model.blocks)  # type: ignore[arg-type]
    strategy = FullySharded()
    assert not strategy.restore_checkpoint_after_setup
    assert strategy.lightning_restore_optimizer
    tensor = torch.ones(2)
    assert local(tensor) is tensor
