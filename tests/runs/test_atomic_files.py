"""Atomic writing: all or nothing, and nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from visionzoo.files import (
    atomic_folder,
    atomic_path,
    remove_leftovers,
    similar_names,
    write_csv,
    write_json,
    write_text,
)


def test_failure_keeps_the_old_file_and_leaves_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "config.json"
    write_text(target, "old")

    def write_on_a_full_disk() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_on_a_full_disk()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.json"]


def test_readers_see_the_old_text_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.suffix == ".txt"
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["a.txt"]


def test_permissions_are_those_of_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    with atomic_path(tmp_path / "replaced") as temporary:  # as safetensors writes
        (tmp_path / "private").touch(mode=0o600)
        (tmp_path / "private").replace(temporary)
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "ours", "replaced")}
    assert len(modes) == 1


def test_json_keeps_names_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"labels": ["Zürich", "猫"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"labels": ["Zürich", "猫"]}
    assert "猫" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert "Zürich" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_csv_quotes_what_needs_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["name", "n"], [["a, b", 1], ['"c"', 2]])
    assert (tmp_path / "a.csv").read_text() == 'name,n\n"a, b",1\n"""c""",2\n'


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "last.ckpt") as temporary:
        left = temporary.name
    kept = ["last.ckpt", ".hidden", ".last.ckpt", "a.0123456789ab.ckpt", ".git"]
    for name in (left, *kept):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_a_name_is_suggested_where_it_is_near_only() -> None:
    there = ["notes.txt", "touch.py", "photos", "photos2", "chunks"]
    assert similar_names("nosuch", there) == []
    assert similar_names("photo", there)[0] == "photos"
    assert similar_names("phtoos", there)[0] == "photos"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as new:
        (new / "a").write_text("first")
    with pytest.raises(IsADirectoryError), atomic_folder(target) as new:
        new.write_text("fails")
    assert (target / "a").read_text() == "first"
    with atomic_folder(target) as new:
        (new / "b").write_text("second")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "b"]
    (tmp_path / ".folder.0123456789ab").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
