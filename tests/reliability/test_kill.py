"""A run that is killed and resumed, at any moment and any number of times, is the run that never was killed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_process import COMMON, TINY, Fault, Launcher, metrics, seen
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
Survived = Callable[..., None]
EPOCHS = 3
#: The evaluation of ``segment`` is not the same twice, even within one process: where the decoder's value lies on the
#: edge, rounding, which depends on where a tensor lies in memory, turns a pixel, and the next click follows it.
SHAKY = {f"val/{name}" for name in ("iou_1", "iou_3", "iou_5", "iou_box", "clicks_85", "clicks_90")}
#: What only the rank that writes checkpoints does.
RANK_0 = ("save", "rename")
KINDS = ["batch start", "gradient", "batch end", "saved", "validation", "save", "rename"]
#: Of ``TINY["classify"]``.
STEPS = 6 * EPOCHS


def fit(task: str, *options: str) -> list[str]:
    return [task, "fit", *TINY[task], *COMMON, f"--trainer.max_epochs={EPOCHS}", *options]


def assert_same_run(run: Path, whole: Path) -> None:
    assert seen(run) == seen(whole)
    ours, theirs = metrics(run), metrics(whole)
    assert [_exact(row) for row in ours] == [_exact(row) for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in SHAKY & {key for key in b if b[key]}:
            assert float(a[name]) == pytest.approx(float(b[name]), rel=0.01, abs=1e-3), name
    a, b = (torch.load(f / "last.ckpt", weights_only=True) for f in (run, whole))
    assert a["global_step"] == b["global_step"]
    assert same(a["state_dict"], b["state_dict"])
    assert same(a["optimizer_states"][0]["state"], b["optimizer_states"][0]["state"])
    if not SHAKY & theirs[-1].keys():  # they choose which weights are the best
        assert same(load_file(run / "model.safetensors"), load_file(whole / "model.safetensors"))


def _exact(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in SHAKY}


def same(a: Any, b: Any) -> bool:
    """Equality bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def moments(seed: int, count: int) -> list[Fault]:
    """Random moments of a run, each later than the one before, every kind in turn."""
    rng = random.Random(seed)
    kinds = rng.sample(KINDS, len(KINDS))
    steps = sorted(rng.sample(range(1, STEPS), count))
    found = []
    for i, step in enumerate(steps):
        where = kinds[i % len(kinds)]
        found.append(Fault(step=-(-step // 6) * 6 if where == "validation" else step, where=where))
    return sorted(found, key=lambda fault: fault.step)


def broken_off(launcher: Launcher, faults: list[Fault], command: list[str], world_size: int = 1) -> Path:
    """A run that is killed at every one of ``faults`` and then ends."""
    place, done = "--run_dir=cut", 0
    for fault in faults:
        codes = launcher.run(*command, place, fault=fault, world_size=world_size)
        assert codes[fault.rank] == -signal.SIGKILL, (fault, launcher.output())
        place, done = "--resume=cut", done + 1
    assert launcher.run(*command, place, world_size=world_size) == [0] * world_size, launcher.output()
    return launcher.folder / "cut"


def whole_run(launcher: Launcher, command: list[str], world_size: int = 1) -> Path:
    assert launcher.run(*command, "--run_dir=whole", world_size=world_size) == [0] * world_size, launcher.output()
    return launcher.folder / "whole"


def last_line(launcher: Launcher) -> str:
    """The results, as the last run said them."""
    lines = launcher.ranks[-1].log.read_text().splitlines()
    return next(line for line in reversed(lines) if " epoch, " in line)


@pytest.mark.parametrize(("workers", "save_every", "seed"), [(0, 1, 1), (0, 2, 2), (2, 2, 3)])
def test_killed_at_random_moments(
    launcher: Launcher, survived: Survived, workers: int, save_every: int, seed: int
) -> None:
    command = fit("classify", f"--save_every_n_steps={save_every}", f"--data.num_workers={workers}")
    whole = whole_run(launcher, command)
    assert_same_run(broken_off(launcher, moments(seed, len(KINDS)), command), whole)
    survived(f"SIGKILL at a random moment, {workers} workers, resumed bit for bit", len(KINDS))


@pytest.mark.parametrize("task", ["mae", "ssl", "clip", "segment"])
def test_every_task_goes_on_where_it_was_killed(launcher: Launcher, survived: Survived, task: str) -> None:
    command = fit(task, "--save_every_n_steps=1", "--data.num_workers=0")
    whole = whole_run(launcher, command)
    assert_same_run(broken_off(launcher, [Fault(step=6, where="gradient")], command), whole)
    survived(f"SIGKILL of `{task}`, resumed bit for bit")


def test_two_processes_killed_at_random_moments(launcher: Launcher, survived: Survived) -> None:
    command = fit("classify", "--save_every_n_steps=2", "--data.num_workers=0", "--data.batch_size=8")
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    whole = whole_run(launcher, command, world_size=2)
    faults = [replace(fault, rank=i % 2) for i, fault in enumerate(moments(4, 5)) if fault.where not in RANK_0]
    assert_same_run(broken_off(launcher, faults, command, world_size=2), whole)
    survived("SIGKILL of one of two processes (DDP), resumed bit for bit", len(faults))


@pytest.mark.parametrize(
    "options",
    [
        [],  # iBOT: teacher, both centres, masks
        ["--model.method=moco", "--model.patch_loss_weight=0", "--model.queue=128", "--data.small_views=0"],
    ],
    ids=["ibot", "moco"],
)
def test_two_processes_that_pretrain_killed(launcher: Launcher, survived: Survived, options: list[str]) -> None:
    command = fit("ssl", "--save_every_n_steps=2", "--data.num_workers=0", "--data.batch_size=8", *options)
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    whole = whole_run(launcher, command, world_size=2)
    faults = [Fault(step=5, where="gradient", rank=1), Fault(step=10, where="batch end")]
    assert_same_run(broken_off(launcher, faults, command, world_size=2), whole)
    survived("SIGKILL of one of two processes of `ssl` (DDP), resumed bit for bit", len(faults))


def test_killed_after_the_last_step(launcher: Launcher, survived: Survived) -> None:
    """Without a validation the weights are exported when training ends, and nothing is left to train then."""
    command = fit("classify", "--data.num_workers=0", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1")
    whole = whole_run(launcher, command)
    run = broken_off(launcher, [Fault(step=6, where="end")], command)
    assert same(load_file(run / "model.safetensors"), load_file(whole / "model.safetensors"))
    assert (run / "curves.png").is_file()
    survived("SIGKILL after the last step, before the export")


@pytest.mark.parametrize("task", ["classify", "mae", "ssl", "clip", "segment"])
def test_killed_after_the_last_save(launcher: Launcher, survived: Survived, task: str) -> None:
    """Pictures, tables and the line of results are made when the run is resumed."""
    command = [task, "fit", *TINY[task], *COMMON, "--trainer.max_epochs=1", "--data.num_workers=0"]
    whole = whole_run(launcher, command)
    line = last_line(launcher)
    last = 6 if task in ("classify", "mae", "ssl") else 4
    run = broken_off(launcher, [Fault(step=last, where="end")], command)
    names = [{p.name for p in folder.iterdir() if "tfevents" not in p.name} for folder in (run, whole)]
    assert names[0] == names[1]
    if task != "segment":  # see SHAKY
        assert last_line(launcher) == line
    survived(f"SIGKILL of `{task}` after the last save, before its results: resumed, they are made")


def test_killed_before_the_last_weights_are_judged(launcher: Launcher, survived: Survived) -> None:
    """Where ``max_steps`` ends a run inside an epoch, they are saved before they are validated."""
    command = fit("classify", "--data.num_workers=0", "--trainer.max_steps=8", "--model.lr=1e-2")
    whole = whole_run(launcher, command)
    run = broken_off(launcher, [Fault(step=8, where="validation")], command)
    assert metrics(run) == metrics(whole)
    assert same(load_file(run / "model.safetensors"), load_file(whole / "model.safetensors"))
    stored = [torch.load(folder / "best.ckpt", weights_only=True) for folder in (run, whole)]
    assert stored[0]["global_step"] == stored[1]["global_step"]
    assert last_line(launcher).startswith("best epoch, ")
    survived("SIGKILL while the last weights are validated: resumed, they are judged")


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_the_process_that_was_killed(launcher: Launcher, survived: Survived, method: str) -> None:
    command = fit("classify", "--data.num_workers=2", f"--data.worker_start_method={method}", "--run_dir=cut")
    assert launcher.run(*command, fault=Fault(step=3, where="gradient")) == [-signal.SIGKILL]
    deadline = time.monotonic() + 20
    while (left := launcher.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    survived(f"SIGKILL leaves no worker behind ({method})")


def test_the_command_itself_killed_from_outside(launcher: Launcher, survived: Survived) -> None:
    """As people start it: at a moment that nobody chose, three times."""
    command = fit("classify", "--save_every_n_steps=1", "--data.num_workers=2")
    rng = random.Random(5)
    place, run = "--run_dir=cut", launcher.folder / "cut"
    for _ in range(3):
        before = (run / "last.ckpt").stat().st_mtime_ns if (run / "last.ckpt").is_file() else 0
        process = launcher.command(*command, place)
        while not (run / "last.ckpt").is_file() or (run / "last.ckpt").stat().st_mtime_ns == before:
            assert process.poll() is None, launcher.output()
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        place = "--resume=cut"
    assert launcher.run(*command, place) == [0], launcher.output()
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    recorded = launcher.folder / "cut"
    whole = whole_run(launcher, command)
    assert metrics(recorded) == metrics(whole)
    assert same(load_file(run / "model.safetensors"), load_file(whole / "model.safetensors"))
    survived("SIGKILL of `train.py` from outside, 2 workers, resumed bit for bit", 3)
