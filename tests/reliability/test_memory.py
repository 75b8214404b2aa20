"""Memory that runs out on one of two processes, and memory that must not grow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from run_process import COMMON, TINY, Fault, Launcher, metrics

Survived = Callable[..., None]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8"]
PLAIN = ["--model.drop_path=0", "--model.drop_rate=0", "--data.num_workers=0", "--trainer.max_epochs=1"]


@pytest.mark.slow
def test_one_rank_without_memory_makes_all_halve(launcher: Launcher, survived: Survived) -> None:
    """In the middle of its backward pass, where the others would wait for it. Nothing else changes."""
    command = ["classify", "fit", *TINY["classify"], *COMMON, *PLAIN, *TWO, "--model.lr=1e-6"]
    assert launcher.run(*command, "--run_dir=plain", world_size=2) == [0, 0], launcher.output()
    fault = Fault(step=3, where="memory", signal=0, rank=1)
    assert launcher.run(*command, "--run_dir=little", fault=fault, world_size=2) == [0, 0], launcher.output()
    plain, little = metrics(launcher.folder / "plain"), metrics(launcher.folder / "little")
    assert len(plain) == len(little)
    assert {row["micro_batch"] for row in little if row["train/loss"]} == {"2"}
    for one, two in zip(plain, little, strict=True):
        for key in ("train/loss", "val/loss"):
            if one[key]:
                assert float(one[key]) == pytest.approx(float(two[key]), abs=1e-5)
    survived("out of memory on one of two processes: both halve, with the gradient of the whole batch", 2)
