from __future__ import annotations

import getpass
import json
import socket
import subprocess
from pathlib import Path

import pytest

from visionzoo.runs import RunFolder, describe_run, fingerprint_path, git_state, read_record, write_record


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
        write_record(run, describe_run(seed=seed, argv=["/home/me/bin/visionzoo", "train", "--x", "a b"]))
    first, second = read_record(run)
    assert (first["seed"], second["seed"]) == (1, 2)
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


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_fingerprint_says_what_and_not_where(tmp_path: Path) -> None:
    a = fingerprint_path(tree(tmp_path / "a", {"x/1.png": "11", "y/2.png": "222"}))
    b = fingerprint_path(tree(tmp_path / "b", {"y/2.png": "333", "x/1.png": "44"}))
    assert a["sha256"] == b["sha256"]
    assert (a["files"], a["bytes"]) == (2, 5)
    renamed = fingerprint_path(tree(tmp_path / "c", {"x/1.png": "11", "x/2.png": "222"}))
    grown = fingerprint_path(tree(tmp_path / "d", {"x/1.png": "11", "y/2.png": "2222"}))
    assert len({a["sha256"], renamed["sha256"], grown["sha256"]}) == 3


def test_fingerprint_of_a_file_and_of_a_named_set(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("abc")
    assert fingerprint_path(tmp_path / "a.parquet")["bytes"] == 3
    digits, shapes = fingerprint_path("digits"), fingerprint_path("shapes")
    assert digits["files"] == 0
    assert digits["sha256"] != shapes["sha256"]


def test_fingerprint_ends_on_a_loop_and_follows_links(tmp_path: Path) -> None:
    real = tree(tmp_path / "real", {"1.png": "1"})
    data = tree(tmp_path / "data", {"x/2.png": "22"})
    (data / "linked").symlink_to(real)
    (data / "x" / "up").symlink_to(data)
    (data / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = fingerprint_path(data)
    assert (found["files"], found["bytes"]) == (2, 3)


def test_fingerprint_of_names_that_are_not_utf8(tmp_path: Path) -> None:
    with open(bytes(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"1")
    assert fingerprint_path(tmp_path)["files"] == 1
