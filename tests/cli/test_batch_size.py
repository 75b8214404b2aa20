"""``--data.batch_size auto``: a real step is measured in processes of its own, and the number is written down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from visionzoo.cli import batch_size, measured_step, search_batch_size
from visionzoo.cli import train as cli
from visionzoo.cli.batch_size import Measured, choose
from visionzoo.data.classify import ClassifyData
from visionzoo.runs import memory

ROOT = Path(__file__).parents[2]
DIGITS = ["--data.path=digits", "--model.backbone=vit_nano_patch4_32", "--model.image_size=16"]
CPU = ["--trainer.accelerator=cpu", "--data.num_workers=0"]
TASKS = {
    "classify": DIGITS,
    "mae": [*DIGITS, "--model.decoder_dim=32", "--model.decoder_depth=1", "--model.decoder_heads=2"],
    "ssl": [*DIGITS, "--model.hidden=32", "--model.out=32", "--model.patch_loss_weight=1"],
    "clip": [
        "--data.path=shapes:64", "--model.backbone=vit_nano_patch4_32", "--model.text=nano",
        "--model.context_length=16", "--model.micro_batch=3",
    ],
    "segment": [
        "--data.path=shapes:24", "--data.shapes_size=32", "--model.backbone=vit_nano_patch4_32",
        "--model.image_size=32", "--model.embedding_stride=4", "--model.decoder_dim=16", "--model.clicks=1",
        "--model.encoder=full",
    ],
}  # fmt: skip


def steps_of(per_image: int, budget: int, images: int) -> tuple[Callable[[int], Measured], list[int]]:
    """A machine on which a step takes 100 bytes and ``per_image`` for each image."""
    tried: list[int] = []

    def measure(size: int) -> Measured:
        tried.append(size)
        taken = 100 + per_image * size
        return Measured(size, 0 if taken > 2 * budget else taken, budget, images)

    return measure, tried


@pytest.mark.parametrize(
    ("budget", "images"), [(1_000, 500), (250, 500), (5_000, 300), (112, 40), (130, 2), (10**9, 77)]
)
def test_the_choice_is_the_largest_that_fits_but_for_an_eighth(budget: int, images: int) -> None:
    measure, tried = steps_of(10, budget, images)
    found, too_large = choose(measure)
    best = min((budget - 100) // 10, images)
    assert found.fits
    assert best * 7 / 9 <= found.size <= best
    assert (too_large is None) == (best == images)
    assert len(tried) <= 14
    assert max(tried[1:], default=0) <= images


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="one image does not fit"):
        choose(steps_of(10, 105, 50)[0])


def test_the_number_is_written_down_and_scales_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "find_batch_size", lambda task, config, imports: (24, f"measured {task}"))
    options = [*DIGITS, *CPU, "--data.train_limit=96", "--data.batch_size=auto", "--model.base_lr=0.64"]
    options += ["--trainer.max_epochs=1", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"]
    assert cli.run(["classify", "fit", *options, "--run_dir=run"]) == 0
    assert "measured classify" in capsys.readouterr().out
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["data"]["batch_size"] == 24
    first = Path("run/metrics.csv").read_text().splitlines()[:2]
    row = dict(zip(first[0].split(","), first[1].split(","), strict=True))
    assert float(row["lr"]) == pytest.approx(0.64 * 24 / 256)


def test_auto_is_for_training_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["classify", "validate", *DIGITS, *CPU, "--data.batch_size=auto"]) == 2
    assert "auto is for fit" in capsys.readouterr().err
    with pytest.raises(ValueError, match="give a number"):
        ClassifyData("digits", batch_size="auto")


@pytest.mark.parametrize("task", list(TASKS))
def test_a_step_of_each_task_is_measured(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which tells nothing about memory, but that the step is real and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    written: list[str] = []
    monkeypatch.setattr(cli, "find_batch_size", lambda task, config, imports: written.append(config) or (1, ""))
    steps: list[int] = []
    monkeypatch.setattr(
        measured_step.StepCLI, "after_fit", lambda self: (steps.append(self.trainer.global_step), self._tell(peak=1))
    )
    more = ["--model.warmup_steps=50", "--trainer.max_epochs=9"]
    more += ["--model.ema_decay=0.9"] if task != "ssl" else []  # dino's teacher is an average already
    assert cli.run([task, "fit", *TASKS[task], *CPU, *more, "--data.batch_size=auto", "--print_groups=true"]) == 0
    search = search_batch_size.Search(task, yaml.safe_load(written[0]), tmp_path / "out")
    config = {**search.config, "data": {**search.config["data"], "batch_size": 5}}
    Path("step.yaml").write_text(yaml.safe_dump(config))
    measured_step.measure_step(
        task, "step.yaml", Path("out/found.json"), 5, on_node=1, processes=1, headroom=batch_size.HEADROOM
    )
    found = json.loads(Path("out/found.json").read_text())
    assert "error" not in found
    assert (found["peak"], steps) == (1, [2])
    assert found["images"] >= 20
    assert found["batch"] >= 5 * 3 * 16 * 16
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["found.json", "out", "step.yaml"]


def test_the_limit_is_the_least_that_anybody_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    free = memory.free_bytes()
    (tmp_path / "memory.max").write_text(f"{free // 2}\n")
    (tmp_path / "memory.current").write_text("3000000")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 1000000\n")
    assert memory.free_bytes() == free // 2 - 2000000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes() == pytest.approx(free, rel=0.2)
    monkeypatch.setenv(memory.LIMIT_VARIABLE, "1.5G")
    assert memory.free_bytes() == 3 * 2**29
    monkeypatch.setenv(memory.LIMIT_VARIABLE, "much")
    with pytest.raises(ValueError, match="is no size"):
        memory.free_bytes()


def command(folder: Path, limit: str, *options: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, "PYTHONPATH": str(ROOT), memory.LIMIT_VARIABLE: limit}
    arguments = [sys.executable, str(ROOT / "train.py"), *options, *CPU, "--data.batch_size=auto"]
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


BIG = ["classify", "fit", "--model.backbone=vit_small_patch16_224", "--model.image_size=96", "--data.path=shapes:120"]


@pytest.mark.slow
def test_a_run_keeps_to_the_limit(tmp_path: Path) -> None:
    """The line of a real run says the peak that the search has foreseen."""
    run = command(tmp_path, "1600M", *BIG, "--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--run_dir=run")
    assert run.returncode == 0, run.stderr
    size = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["batch_size"]
    assert 1 <= size < 96, run.stdout
    assert f"batch size {size}:" in run.stdout
    peak = next(float(x.split()[-2]) for x in run.stdout.splitlines() if x.startswith("peak memory"))
    assert peak < 1600 / 1024
    told = run.stdout.split("took ")[1].split()
    assert float(told[0]) == pytest.approx(peak, abs=0.15)


@pytest.mark.slow
def test_a_step_that_takes_too_much_is_ended_and_harms_nothing(tmp_path: Path, survived: Callable[..., None]) -> None:
    run = command(tmp_path, "300M", *BIG, "--run_dir=run")
    assert run.returncode == 2
    assert "one image does not fit" in run.stderr
    assert not (tmp_path / "run").exists()
    survived("a measured step that takes more memory than there is, ended in its own process", 4)


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_is_measured_in_processes_of_its_own(task: str, tmp_path: Path) -> None:
    more = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--run_dir=run"]
    limit = ["--data.train_limit=24"] if task in ("classify", "mae", "ssl") else []
    run = command(tmp_path, "8G", task, "fit", *TASKS[task], *limit, *more)
    assert run.returncode == 0, run.stderr
    assert "all training images" in run.stdout
