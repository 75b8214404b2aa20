"""What ``visionzoo data check`` finds in a folder with everything wrong with it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from visionzoo.data.check import check_data


@pytest.fixture
def messy(class_tree: Callable[..., Path], encode) -> Path:
    root = class_tree({"train/cat": 30, "train/dog": 2, "val/cat": 2, "val/dog": 1})
    train = root / "train"
    (train / "cat" / "twin.png").write_bytes((train / "cat" / "000.png").read_bytes())
    (train / "dog" / "liar.png").write_bytes((train / "cat" / "001.png").read_bytes())
    (root / "val" / "cat" / "leak.png").write_bytes((train / "cat" / "002.png").read_bytes())
    (train / "cat" / "empty.png").write_bytes(b"")
    (train / "cat" / "cut.jpg").write_bytes(encode(1, "JPEG", (64, 64))[:300])
    buffer = io.BytesIO()
    Image.new("CMYK", (40, 20)).save(buffer, "JPEG")
    (train / "dog" / "print.jpg").write_bytes(buffer.getvalue())
    return root


def test_a_messy_folder_is_described(messy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_data(messy, progress=True, num_threads=2)
    captured = capsys.readouterr()
    assert captured.out == "", "progress goes to standard error"
    assert "reading images" in captured.err
    train = report.splits["train"]
    assert (train.samples, train.counts) == (37, {"cat": 33, "dog": 4})
    assert train.width == (12, 12, 40)
    assert train.height == (10, 10, 20)
    assert train.modes == {"RGB": 34, "CMYK": 1}
    assert train.formats == {"PNG": 34, "JPEG": 1}
    assert {(Path(name).name, reason.split(":")[0]) for name, reason in train.unreadable} == {
        ("empty.png", "empty"), ("cut.jpg", "OSError"),
    }  # fmt: skip
    names = [[Path(sample).name for sample in group] for group in report.duplicates_within]
    assert sorted(names) == [["000.png", "twin.png"], ["001.png", "liar.png"]]
    assert [[s.split(":")[0] for s in group] for group in report.duplicates_across] == [["train", "val"]]
    assert [Path(group[1]).name for group in report.conflicting_labels] == ["liar.png"]
    text = report.to_text()
    for part in ("2 of 37 images cannot be read", "more than one split", "under different labels", 
                 "12 / 12 / 40 pixels", "empty: zero bytes", "leak.png", "33  cat"):  # fmt: skip
        assert part in text, part
    assert json.loads(json.dumps(report.to_dict()))["splits"]["train"]["counts"]["dog"] == 4


def test_imbalance_is_said(class_tree: Callable[..., Path]) -> None:
    report = check_data(class_tree({"train/a": 22, "train/b": 2, "val/a": 1, "val/b": 1}))
    assert report.warnings == (
        "train: classes have between 2 and 22 images; consider balanced sampling or class weights",
    )


def test_clean_data_have_no_warnings(class_tree: Callable[..., Path]) -> None:
    report = check_data(class_tree({"a": 5, "b": 5}))
    assert report.warnings == ()
    assert report.to_text().endswith("no problems found")


def test_sets_that_were_never_files_can_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionzoo.data.sources import open as opening

    monkeypatch.setattr(opening, "VAL_LENGTH", 6)
    report = check_data("shapes:12")
    assert report.splits["train"].formats == {"array": 12}
    assert report.warnings == ()


def test_real_photographs(real_data: Path, tmp_path: Path) -> None:
    for name in ("tench", "church"):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        for path in sorted((real_data / "imagenette" / "val" / name).iterdir())[:4]:
            (folder / path.name).symlink_to(path)
    report = check_data(tmp_path)
    assert report.splits["val"].formats == {"JPEG": 8}
    assert report.splits["val"].unreadable == ()
