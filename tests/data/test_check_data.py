"""What ``visionzoo data check`` finds in a folder with everything wrong with it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    from visionzoo.data.sources import shapes

    monkeypatch.setattr(shapes, "VAL_LENGTH", 6)
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


def test_masks_are_checked_as_segmentation_reads_them(tmp_path: Path) -> None:
    for i in range(5):
        values = np.zeros((20, 30), np.uint8)
        values[2:8, 3:9], values[10:16, 12:20] = 1, 2
        for kind, image in (("images", Image.new("RGB", (30, 20), (i, i, i))), ("masks", Image.fromarray(values))):
            (tmp_path / kind).mkdir(exist_ok=True)
            image.save(tmp_path / kind / f"{i}.png")
    (tmp_path / "masks/4.png").unlink()
    Image.new("L", (20, 30)).save(tmp_path / "masks/3.png")
    report = check_data(tmp_path)
    assert (report.layout, report.classes) == ("images with masks", ())
    assert report.problems == ((f"{tmp_path}/images/4.png", "no mask of the same name"),)
    assert [reason for split in report.splits.values() for _, reason in split.unreadable] == [
        "its mask is 20x30 pixels, the image 30x20"
    ]
    assert report.splits["train"].objects[2] == 2
    text = report.to_text()
    for part in (": images with masks", "objects: 2 / 2 / 2 in an image", "no mask of the same name", "passed over"):
        assert part in text, part
    assert json.loads(json.dumps(report.to_dict()))["layout"] == "images with masks"


def test_cocos_files_are_checked_as_segmentation_reads_them(tmp_path: Path, encode) -> None:
    corners = [[1, 1, 9, 1, 9, 8, 1, 8]]
    record = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 12} for i in range(4)],
        "annotations": [{"id": i, "image_id": i % 3, "category_id": 1, "segmentation": corners} for i in range(5)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    record["annotations"][4]["segmentation"] = []
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / "images" / f"{i}.png").write_bytes(encode(i))
    for name in ("mine.json", "instances_train.json"):
        (tmp_path / name).write_text(json.dumps(record))
    for path in (tmp_path / "mine.json", tmp_path):
        report = check_data(path)
        assert report.layout == "images with masks"
        assert "1 annotations have no segmentation" in report.problems[0][1]
        assert any("no object" in text for text in report.warnings)


def test_captions_are_checked_as_clip_reads_them(tmp_path: Path, encode) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
        (tmp_path / f"{i}.txt").write_text(f"number {i}\n")
    (tmp_path / "3.txt").write_bytes(b"caf\xe9")
    report = check_data(tmp_path, val_fraction=0.0)
    assert report.layout == "images with captions"
    assert (report.splits["train"].captions, report.splits["train"].unlabelled) == (3, 1)
    assert "train: 1 images have no caption" in report.warnings
    assert "line 1 is not UTF-8" in report.to_text()
    (tmp_path / "list.csv").write_text("image,caption\n" + "".join(f"{i}.png,number {i}\n" for i in range(4)))
    assert check_data(tmp_path / "list.csv", val_fraction=0.0).splits["train"].captions == 4
    (tmp_path / "both.csv").write_text("image,caption,label\n" + "".join(f"{i}.png,a {i},{i % 2}\n" for i in range(4)))
    assert check_data(tmp_path / "both.csv").classes == ("0", "1"), "labels come first"


def test_images_alone_are_checked_as_mae_reads_them(tmp_path: Path, encode) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
    report = check_data(tmp_path)
    assert (report.layout, report.splits["train"].samples, report.warnings) == ("images", 4, ())
    assert report.to_text().endswith("no problems found")
