from __future__ import annotations

import getpass
import json
import socket
import subprocess
from pathlib import Path

import pytest

from visionzoo.runs import RunFolder, describe_run, git_state, read_record, write_record


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_git_state_follows_the_tree(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # nothing tracked yet
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "a")
    assert git_state(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": True}
    untracked = tmp_path / "site-packages"
    untracked.mkdir()
    assert git_state(untracked) is None  # a copy that this repository does not track


def test_record_keeps_one_entry_for_each_start(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for seed in (1, 2):
        data = {"path": "digits", "fingerprint": "ab12"}
        argv = ["/home/me/bin/visionzoo", "train", "--x", "a b"]
        write_record(run, describe_run(seed=seed, data=data, argv=argv))
    first, second = read_record(run)
    assert (first["seed"], second["seed"]) == (1, 2)
    assert first["data"] == {"path": "digits", "fingerprint": "ab12"}
    assert first["command"] == "visionzoo train --x 'a b'"
    assert {"python", "torch", "pytorch-lightning", "timm", "visionzoo"} <= set(first["versions"])


def test_record_does_not_name_the_machine(tmp_path: Path) -> None:
    text = json.dumps(describe_run(seed=0, argv=["train.py"]))
    for private in (f'"{socket.gethostname()}"', f'"{getpass.getuser()}"', str(Path(__file__).parent)):
        assert private not in text


def test_a_foreign_run_json_is_not_overwritten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for text in ("{", '{"a": 1}', "[]"):
        run.record.write_text(text)
        with pytest.raises(ValueError, match="move it away"):
            write_record(run, describe_run(seed=0))
        assert run.record.read_text() == text
