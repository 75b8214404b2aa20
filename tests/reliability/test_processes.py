"""Several processes on one machine: they count what one counts, and none waits for one that has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_process import COMMON, ROOT, TINY, Launcher, metrics

from visionzoo.runs.answers import read_answers

pytestmark = pytest.mark.slow
Survived = Callable[..., None]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def class_folders(root: Path, counts: dict[str, int]) -> None:
    """``counts`` images of noise in each folder."""
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / folder / f"{i}.png")


def test_scores_of_21_images_on_two_ranks_are_those_on_one(launcher: Launcher) -> None:
    """An odd number: ranks that were filled up with repeated images would count one twice."""
    class_folders(launcher.folder / "set", {"train/a": 16, "train/b": 16, "val/a": 10, "val/b": 11})
    data = ["--data.path=set", "--data.batch_size=8", "--data.eval_batch_size=4", "--data.num_workers=0"]
    model = ["--model.backbone=vit_nano_patch4_32", "--model.image_size=16", "--trainer.accelerator=cpu"]
    fit = ["classify", "fit", *data, *model, "--trainer.max_epochs=1", "--run_dir=run"]
    assert launcher.run(*fit) == [0], launcher.output()
    said, answers = [], []
    for ranks, more in ((1, []), (2, TWO)):
        command = ["classify", "validate", *data, "--model.weights=run", "--trainer.accelerator=cpu", *more]
        assert launcher.run(*command, f"--run_dir=seen-{ranks}", world_size=ranks) == [0] * ranks, launcher.output()
        log = launcher.ranks[-ranks].log.read_text()
        said.append(next(line for line in log.splitlines() if "held-out images" in line))
        table = (launcher.folder / f"seen-{ranks}" / "per_class.csv").read_text()
        said.append(table)
        answers.append(read_answers(launcher.folder / f"seen-{ranks}" / "answers.parquet").rows)
        assert (launcher.folder / f"seen-{ranks}" / "report.html").is_file()
    assert "on 21 held-out images" in said[0]
    assert said[:2] == said[2:]
    one, two = ({**rows, "probabilities": np.round(rows["probabilities"], 4).tolist()} for rows in answers)
    assert one == two
    assert len(one["sample"]) == 21 == sum(picture is not None for picture in one["picture"])


def test_two_processes_train_as_one_with_twice_the_batch(launcher: Launcher) -> None:
    """Without what draws random numbers by rank: losses of 1 x 16 and of 2 x 8."""
    plain = ["--model.drop_path=0", "--model.drop_rate=0", "--model.mixup=0", "--model.cutmix=0"]
    command = ["classify", "fit", *TINY["classify"], *COMMON, *plain, "--trainer.max_epochs=1", "--data.num_workers=0"]
    command += ["--trainer.limit_val_batches=1.0"]  # all images: a number of batches would be one for each rank
    assert launcher.run(*command, "--run_dir=one") == [0], launcher.output()
    halves = [*command, *TWO, "--data.batch_size=8", "--run_dir=two"]
    assert launcher.run(*halves, world_size=2) == [0, 0], launcher.output()
    one, two = (metrics(launcher.folder / name) for name in ("one", "two"))
    scores = [[float(row["val/loss"]) for row in rows if row["val/loss"]] for rows in (one, two)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("classify", ["--model.finetune=head", "--model.mixup=0", "--model.cutmix=0"]),
        ("classify", ["--model.finetune=lora", "--model.lora_rank=2"]),
        ("mae", []),  # its decoder's positions are fixed
        ("ssl", []),  # its teacher is frozen
        ("clip", ["--model.lock_image=true"]),
        ("segment", ["--model.encoder=frozen", "--model.embedding_cache=off"]),
    ],
    ids=["head", "lora", "mae", "ssl", "clip", "segment"],
)
def test_frozen_parts_need_no_special_flag(launcher: Launcher, task: str, options: list[str], overlap: bool) -> None:
    """Nor does it matter whether DDP exchanges gradients during the backward pass or after it."""
    command = [task, "fit", *TINY[task], *COMMON, *TWO, *options, "--data.num_workers=0", "--trainer.max_steps=5"]
    command += [] if overlap else ["--halve_on_oom=true"]
    assert launcher.run(*command, "--run_dir=two", world_size=2) == [0, 0], launcher.output()
    assert len(metrics(launcher.folder / "two")) >= 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_torchrun_ends_the_others_when_one_dies(launcher: Launcher, survived: Survived, number: int) -> None:
    """In seconds, with the reason; and what was saved is whole."""
    command = ["classify", "fit", *TINY["classify"], *COMMON, *TWO, "--data.batch_size=8", "--data.num_workers=0"]
    command += ["--trainer.max_epochs=1000", "--save_every_n_steps=1", "--run_dir=cut"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    log = launcher.folder / "log-torchrun.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*launch, str(ROOT / "train.py"), *command],
            cwd=launcher.folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=file,
            stderr=file,
        )
    launcher.wait_for("cut/last.ckpt", process)
    second = [pid for pid in launcher.processes() if _environment(pid).get("RANK") == "1"]
    died = time.monotonic()
    os.kill(second[0], number)
    assert process.wait(60) != 0
    assert time.monotonic() - died < 45
    assert signal.Signals(number).name in log.read_text()
    assert not launcher.processes()
    short = [
        *command,
        "--trainer.max_steps=1",
        "--model.warmup_steps=0",
    ]  # it is further than this already: it loads, and ends
    assert launcher.run(*short, "--resume=cut", world_size=2) == [0, 0], launcher.output()
    survived(
        f"{signal.Signals(number).name} of a rank under torchrun: the others end within 45 s, `last.ckpt` is whole"
    )


def _environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def launched(launcher: Launcher, command: list[str], *launch: str) -> subprocess.Popen[bytes]:
    """A run of two processes that has saved once and goes on for long."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with (launcher.folder / "log-launched.txt").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *launch, str(ROOT / "train.py"), *command],
            cwd=launcher.folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=file,
            stderr=file,
        )
    launcher.wait_for("cut/last.ckpt", process)
    return process


LONG = ["classify", "fit", *TINY["classify"], *COMMON, *TWO, "--data.batch_size=8", "--data.num_workers=0"]
LONG += ["--trainer.max_epochs=1000", "--save_every_n_steps=1", "--run_dir=cut"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def said_by(launcher: Launcher) -> str:
    """All of it: torchrun ends with a long traceback."""
    return (launcher.folder / "log-launched.txt").read_text()


def gone(launcher: Launcher, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while launcher.processes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_ranks_save_and_end_when_torchrun_is_killed(launcher: Launcher, survived: Survived) -> None:
    process = launched(launcher, LONG, *TORCHRUN)
    process.kill()
    assert gone(launcher, 20)
    assert "stopped and saved at step" in said_by(launcher)
    survived("SIGKILL of torchrun: its ranks save and end")


def test_sigterm_to_torchrun_saves(launcher: Launcher, survived: Survived) -> None:
    """The exit code is torchrun's own."""
    process = launched(launcher, LONG, *TORCHRUN)
    process.terminate()
    assert process.wait(60) == 1
    assert "stopped and saved at step" in said_by(launcher)
    assert gone(launcher, 20)
    survived("SIGTERM to torchrun: its ranks save and end")


def test_without_torchrun_the_exit_code_is_ours(launcher: Launcher, survived: Survived) -> None:
    process = launched(launcher, LONG)
    process.terminate()
    assert process.wait(60) == 75
    assert "stopped and saved at step" in said_by(launcher)
    assert gone(launcher, 20)
    survived("SIGTERM to rank 0 of two that Lightning started: both save, exit 75")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_rank_that_died_is_named(launcher: Launcher, survived: Survived, number: int) -> None:
    process = launched(launcher, LONG)
    second = next(pid for pid in launcher.processes() if _environment(pid).get("LOCAL_RANK") == "1")
    os.kill(second, number)
    assert process.wait(60) != 0
    said = f"error: rank 1 (process {second}) was ended by {signal.Signals(number).name}; the others are stopped."
    assert said in said_by(launcher)
    assert gone(launcher, 20)
    survived(f"{signal.Signals(number).name} of a rank that Lightning started: named, the others end")


def test_ranks_end_with_rank_0(launcher: Launcher, survived: Survived) -> None:
    process = launched(launcher, LONG)
    process.kill()
    process.wait()
    assert gone(launcher, 5)
    survived("SIGKILL of rank 0 that Lightning started: the others end")
