"""Signals before and after training, two commands in one folder, launchers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer

from visionzoo.cli import main as commands
from visionzoo.cli import train as cli
from visionzoo.runs import FolderLock

FIT = ["classify", "fit", "--model.backbone=vit_nano_patch4_32", "--model.image_size=16", "--data.path=digits"]
FIT += ["--data.train_limit=32", "--data.batch_size=16", "--data.num_workers=0", "--trainer.accelerator=cpu"]
FIT += ["--trainer.limit_val_batches=1", "--trainer.max_epochs=1", "--run_dir=run"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def send_in(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, number: int) -> None:
    """This process gets a signal when the method is called."""
    whole = getattr(owner, name)

    def method(self: Any, *args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return whole(self, *args, **options)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(cli.TrainCLI, "add_arguments_to_parser"), (cli.TrainCLI, "before_fit"), (Trainer, "_run_stage")],
)
def test_a_signal_before_training_is_one_line(
    owner: type, name: str, number: int, monkeypatch: pytest.MonkeyPatch, capsys: Any, survived: Callable[..., None]
) -> None:
    before = signal.getsignal(number)
    send_in(monkeypatch, owner, name, number)
    assert commands.train(FIT) == 75
    assert capsys.readouterr().err == f"stopped by {signal.Signals(number).name} before anything was saved\n"
    assert not Path("run").exists()
    assert signal.getsignal(number) is before
    survived("SIGTERM or SIGUSR1 before training: one line, exit 75, nothing left")


def test_a_signal_after_training_says_how_to_get_the_results(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with monkeypatch.context() as patch:
        send_in(patch, Trainer, "validate", signal.SIGTERM)
        assert commands.train(FIT) == 75
    assert capsys.readouterr().err == "stopped by SIGTERM. Go on with:\n  python train.py classify fit --resume run\n"
    assert not Path("run/confusion_matrix.png").exists()
    assert commands.train(["classify", "fit", "--resume=run"]) == 0
    assert Path("run/confusion_matrix.png").exists()


def test_the_second_command_in_a_folder_touches_nothing(capsys: Any) -> None:
    assert cli.run(FIT) == 0
    held = FolderLock("run")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    capsys.readouterr()
    for command in (["fit"], ["validate", "--run_dir=run"]):
        assert cli.run(["classify", *command, "--resume=run"]) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"error: run is in use by process {os.getpid()} on ")
        assert said.err.count("\n") == 1
    assert cli.run(["classify", "validate", "--resume=run"]) == 0  # in a folder of its own
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before
    held.release()
    assert cli.run(["classify", "fit", "--resume=run"]) == 0
    assert not Path("run/.lock").exists()


RANK = """
import signal, sys, time
from visionzoo.cli.processes import die_with_launcher
signal.signal(signal.SIGTERM, lambda *_: (open("heard", "w").close(), sys.exit()))
die_with_launcher()
open("ready", "w").write(str(__import__("os").getpid()))
time.sleep(60)
"""
LAUNCHER = """
import os, subprocess, sys
subprocess.run([sys.executable, "rank.py", *sys.argv[1:]], env={**os.environ, %s})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize(
    ("environment", "heard"),
    [('"TORCHELASTIC_RUN_ID": "x"', True), ('"LOCAL_RANK": "1"', False)],
    ids=["torchrun", "ddp"],
)
def test_a_rank_ends_with_its_launcher(environment: str, heard: bool) -> None:
    Path("rank.py").write_text(RANK)
    Path("launcher.py").write_text(LAUNCHER % environment)
    path = os.pathsep.join([str(Path(commands.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    launcher = subprocess.Popen(
        [sys.executable, "launcher.py", "classify", "fit"], env={**os.environ, "PYTHONPATH": path}
    )
    wait_until(lambda: Path("ready").exists() and Path("ready").read_text() != "")
    launcher.kill()
    launcher.wait()
    rank = Path("/proc", Path("ready").read_text(), "cmdline")
    wait_until(lambda: not rank.exists() or not rank.read_bytes())  # gone, or nobody has asked for its exit code
    assert Path("heard").exists() == heard


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)
