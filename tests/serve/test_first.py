"""Pictures that a person annotates first: what the data doctor chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from visionzoo.cli.commands.demo import _named_first
from visionzoo.serve.folder import PictureFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / "new" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "new" / name / "1.png")
    return tmp_path / "new"


def test_what_is_named_comes_first_and_nothing_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PictureFolder(folder, 10**6).names == ["a/1.png", "b/1.png", "c/1.png"]
    monkeypatch.chdir(folder.parent)
    for named in ("c/1.png", str(folder / "c/1.png"), "new/c/1.png"):
        first = PictureFolder(folder, 10**6, [named, "gone.png", "b/1.png", named])
        assert first.names == ["c/1.png", "b/1.png", "a/1.png"]
        assert first.place(str(folder / "c/1.png")) == 0
    with pytest.raises(ValueError, match=r"none of the 1 pictures .* is in .*: 'gone.png'"):
        PictureFolder(folder, 10**6, ["gone.png"])
    outside = folder.parent / "x.png"
    Image.new("RGB", (8, 8)).save(outside)
    with pytest.raises(ValueError, match="none of the 1"):
        PictureFolder(folder, 10**6, [str(outside)])


def test_findings_of_the_doctor_and_plain_lists_are_read(tmp_path: Path) -> None:
    (tmp_path / "findings.json").write_text(json.dumps({"label_next": ["b/1.png", "a/1.png"]}))
    (tmp_path / "list.txt").write_text("b/1.png\n\na/1.png\n")
    assert _named_first(str(tmp_path / "findings.json")) == _named_first(str(tmp_path / "list.txt"))
    assert _named_first(None) == ()
    for text in ("{}", "[]", '{"label_next": [1]}'):
        (tmp_path / "none.json").write_text(text)
        with pytest.raises(ValueError, match="names no pictures"):
            _named_first(str(tmp_path / "none.json"))
