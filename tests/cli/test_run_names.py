"""A run folder may have any name that the file system takes: the run goes on, by the command that it prints."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from visionzoo.cli import train as cli
from visionzoo.terminal import shell_quoted

FIT = ["classify", "fit", "--model.backbone=vit_nano_patch4_32", "--model.image_size=16", "--data.path=digits"]
FIT += ["--data.train_limit=32", "--data.batch_size=16", "--data.num_workers=0", "--trainer.accelerator=cpu"]
FIT += ["--trainer.limit_val_batches=0"]
ODD = [
    "a\nb: {",
    "with space",
    'it\'s "quoted"',
    "-dash",
    "😀",
    "runs[1]",
    "a=b",
    "#x",
    "${y}",
    "{z: 1}",
    "1e3",
    "\x1b[2J",
]


@pytest.mark.parametrize("name", [*ODD[:4], *(pytest.param(n, marks=pytest.mark.slow) for n in ODD[4:])])
def test_a_run_in_a_folder_of_any_name_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run([*FIT, "--trainer.max_epochs=1", "--run_dir", name]) == 0
    folder = Path(name)
    assert folder.is_dir()
    assert cli.run(["classify", "fit", "--resume", name, "--trainer.max_epochs=2"]) == 0, capsys.readouterr().err
    assert "goes on at step 2" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == [name]
    text = (folder / "config.yaml").read_text()
    command = text.splitlines()[0].removeprefix("# Runs this again: python train.py classify fit --config ")
    assert words(command) == [f"{name}/config.yaml"]
    assert yaml.safe_load(text)["trainer"]["max_epochs"] == 2


@pytest.mark.parametrize("name", [*ODD, "back\\slash\n'", "é\t"])
def test_a_printed_name_is_one_word_on_one_line(name: str) -> None:
    quoted = shell_quoted(name)
    assert quoted.isprintable()
    assert words(quoted) == [name]


def words(line: str) -> list[str]:
    """As bash splits them."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]
