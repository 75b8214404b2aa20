"""What a scheduler does to a run: a signal to one process or to all, and a kill while a checkpoint is written."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest
import torch
from run_process import COMMON, TINY, Fault, Launcher, metrics, seen

pytestmark = pytest.mark.slow
Survived = Callable[..., None]
FIT = ["classify", "fit", *TINY["classify"], *COMMON, "--trainer.max_epochs=2", "--data.num_workers=0"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_process_saves_between_steps_and_asks_to_be_started_again(
    launcher: Launcher, survived: Survived, number: int
) -> None:
    assert launcher.run(*FIT, "--run_dir=whole") == [0], launcher.output()
    assert launcher.run(*FIT, "--run_dir=cut", fault=Fault(step=3, where="gradient", signal=number)) == [75]
    assert "saved at step 4, epoch 1. Go on with:" in launcher.output()
    run, whole = launcher.folder / "cut", launcher.folder / "whole"
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
    assert launcher.run(*FIT, "--resume=cut") == [0], launcher.output()
    assert metrics(run) == metrics(whole)
    assert seen(run) == seen(whole)
    assert sum(len(p.read_text().splitlines()) for p in run.glob("seen-*")) == 12  # no step was trained twice
    survived(f"{signal.Signals(number).name}: saved between steps, exit 75, resumed bit for bit")


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(launcher: Launcher, survived: Survived) -> None:
    command = [*FIT, *TWO]
    assert launcher.run(*command, "--run_dir=whole", world_size=2) == [0, 0], launcher.output()
    fault = Fault(step=2, where="batch start", signal=signal.SIGUSR1, rank=1)
    assert launcher.run(*command, "--run_dir=cut", fault=fault, world_size=2) == [75, 75], launcher.output()
    assert torch.load(launcher.folder / "cut" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert launcher.run(*command, "--resume=cut", world_size=2) == [0, 0], launcher.output()
    assert metrics(launcher.folder / "cut") == metrics(launcher.folder / "whole")
    survived("SIGUSR1 to one of two processes: both save at the same step, exit 75")


def test_a_signal_to_the_command_itself(launcher: Launcher, survived: Survived) -> None:
    """``train.py`` as a scheduler starts it, with workers, which hear the signal too."""
    command = [*FIT, "--trainer.max_epochs=1000", "--data.num_workers=2", "--run_dir=cut"]
    process = launcher.command(*command)
    launcher.wait_for("cut/last.ckpt", process)
    for pid in launcher.processes():
        launcher.send(pid, signal.SIGTERM)
    assert process.wait(60) == 75, launcher.output()
    said = re.search(r"saved at step (\d+)", launcher.output())
    assert said is not None
    assert torch.load(launcher.folder / "cut" / "last.ckpt", weights_only=True)["global_step"] == int(said[1])
    survived("SIGTERM to `train.py` and its workers: saved, exit 75")
