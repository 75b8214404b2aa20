"""The pages on code of one's own, built outside the package; their commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SHORT = ["--trainer.accelerator=cpu", "--data.num_workers=0", "--data.train_limit=64", "--data.batch_size=32"]


def write_files(page: str, folder: Path) -> None:
    """Every ``file=`` block of a page; blocks of one file follow each other."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name, body in re.findall(r"^```\w+ file=(\S+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(body + "\n\n")


def commands(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def call(command: list[str], folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """A command of a page, in ``folder``, shortened; ``path`` stands on the import path."""
    assert command[0] == "visionzoo"
    short = SHORT if command[1] == "train" and "--resume" not in command else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "visionzoo", *command[1:4], *short, *command[4:]],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=200, check=False,
    )  # fmt: skip


def without_import(command: list[str]) -> list[str]:
    place = command.index("--import")
    return command[:place] + command[place + 2 :]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(work / "photo.png")
    return work


@pytest.mark.long
def test_a_backbone_from_outside_trains_answers_and_goes_on(folder: Path) -> None:
    write_files("add-a-backbone.md", folder)
    models, fit, predict, resume = commands("add-a-backbone.md")
    done = call(models, folder)
    assert "vit_mini_patch8_64" in done.stdout, done.stderr
    done = call(fit, folder)
    assert "--import convmixer.py" in (folder / "runs/mixer/config.yaml").read_text(), done.stderr
    done = call(predict, folder)
    assert "\nphoto.png," in done.stdout, done.stderr
    refused = call(without_import(predict), folder)
    assert refused.returncode == 2
    assert "runs/mixer/config.json was made with --import convmixer.py" in refused.stderr
    assert refused.stderr.count("\n") == 1
    done = call(resume, folder)
    assert "in epoch 2" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_backbone_of_an_installed_package_needs_no_import(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_files("add-a-backbone.md", folder)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (folder / "convmixer.py").rename(site / "convmixer.py")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{k} = {v}" for k, v in project["entry-points"]["visionzoo"].items())
    (info / "entry_points.txt").write_text(f"[visionzoo]\n{points}\nbroken = not_there_at_all\n")
    _, fit, predict, _ = commands("add-a-backbone.md")
    done = call(without_import(fit), folder, site)
    assert done.returncode == 0, done.stderr
    assert "the extension not_there_at_all of the package our-backbones 1.0 is left out" in done.stderr
    done = call(without_import(predict), folder, site)
    assert "\nphoto.png," in done.stdout, done.stderr


@pytest.mark.slow
def test_a_task_from_outside_trains_answers_goes_on_and_is_probed(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"  # on the path, as if it were installed: only the first command needs --import
    site.mkdir()
    write_files("add-a-task.md", site)
    fit, predict, resume, probe = ([*c] for c in commands("add-a-task.md"))
    fit[fit.index("rotation.py")] = "rotation"
    done = call(fit, folder, site)
    assert (folder / "runs/turn/model.safetensors").is_file(), done.stderr
    done = call(without_import(resume), folder, site)  # the task itself is known from the run
    assert "in epoch 2" in done.stdout, done.stderr
    predict[predict.index("rotation.py")] = "rotation"
    call(predict, folder, site)
    rows = (folder / "runs/told/predictions.csv").read_text().splitlines()
    assert rows[0] == "image,degrees"
    assert len(rows) > 64
    done = call([*without_import(probe), "--device", "cpu"], folder, site)
    assert "k-NN" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_loss_from_outside_trains(folder: Path) -> None:
    write_files("add-a-loss.md", folder)
    (fit,) = commands("add-a-loss.md")
    done = call(fit, folder)
    assert (folder / "runs/poly/model.safetensors").is_file(), done.stderr


@pytest.mark.long
def test_a_reader_from_outside_reads(folder: Path) -> None:
    write_files("add-a-reader.md", folder)
    images = np.random.default_rng(0).integers(0, 255, (96, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "train.npz", images=images, labels=np.arange(96) % 3)
    classify, mae = commands("add-a-reader.md")
    done = call([*classify, "--data.num_workers=1", "--data.worker_start_method=spawn"], folder)
    assert (folder / "runs/arrays/model.safetensors").is_file(), done.stderr
    done = call(mae, folder)
    assert (folder / "runs/drawn/model.safetensors").is_file(), done.stderr
