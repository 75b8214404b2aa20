"""Memory that runs out on one of two processes, and memory that must not grow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from run_process import COMMON, TINY, Fault, Launcher, metrics

Survived = Callable[..., None]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8"]
PLAIN = ["--model.drop_path=0", "--model.drop_rate=0", "--data.num_workers=0", "--trainer.max_epochs=1"]


@pytest.mark.slow
def test_one_rank_without_memory_makes_all_halve(launcher: Launcher, survived: Survived) -> None:
    """In the middle of its backward pass, where the others would wait for it. Nothing else changes."""
    command = ["classify", "fit", *TINY["classify"], *COMMON, *PLAIN, *TWO, "--model.lr=1e-6", "--halve_on_oom=true"]
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


#: What a run may hold more after each epoch of 96 samples: less than 3 KiB a sample.
LIMIT = 256 * 1024
EPOCHS, SETTLED = 30, 10


def growth(launcher: Launcher, leak: int) -> float:
    """Bytes per epoch that the process and its workers hold more, the median over pairs of epochs."""
    run = ["classify", "fit", *TINY["classify"], *COMMON, "--data.num_workers=2", f"--trainer.max_epochs={EPOCHS}"]
    fault = Fault(step=leak, where="leak", signal=0)
    assert launcher.run(*run, f"--run_dir=leak-{leak}", fault=fault) == [0], launcher.output()
    lines = [line.split() for line in (launcher.folder / f"leak-{leak}" / "memory.txt").read_text().splitlines()]
    assert [int(processes) for processes, _ in lines] == [5] * EPOCHS  # two workers for training, two for validation
    sizes = np.array([int(size) for _, size in lines[SETTLED:]], dtype=float)
    first, second = np.triu_indices(len(sizes), k=1)
    return float(np.median((sizes[second] - sizes[first]) / (second - first)))


@pytest.mark.slow
def test_memory_does_not_grow_over_epochs(launcher: Launcher, survived: Survived) -> None:
    assert growth(launcher, leak=0) < LIMIT
    survived("epochs with 2 workers, resident memory growing by less than 256 KiB an epoch", EPOCHS)


@pytest.mark.slow
def test_a_leak_of_eight_kilobytes_a_sample_is_seen(launcher: Launcher) -> None:
    assert growth(launcher, leak=8192) > LIMIT
