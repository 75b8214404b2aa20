"""COCO's files as programs write them: every odd entry is read, or named with its id."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.base import Splits
from visionzoo.data.sources.objects import ObjectSource
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.rle import read_segmentation

N = 6
Record = dict[str, Any]
Survived = Callable[..., None]


def record() -> Record:
    """Image k has one square from (3 k, 5) to (3 k + 10, 15)."""
    corners = [[[3 * k, 5, 3 * k + 10, 5, 3 * k + 10, 15, 3 * k, 15]] for k in range(N)]
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 40, "width": 60} for k in range(N)],
        "categories": [{"id": 1, "name": "a"}, {"id": 90, "name": "b"}],
        "annotations": [
            {"id": 100 + k, "image_id": k, "category_id": 1 if k % 2 else 90, "segmentation": corners[k], "iscrowd": 0}
            for k in range(N)
        ],
    }


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], Splits[ObjectSource]]:
    (tmp_path / "images").mkdir()
    for k in range(N):
        Image.new("RGB", (60, 40), (20 * k,) * 3).save(tmp_path / "images" / f"{k}.png")

    def run(value: Any) -> Splits[ObjectSource]:
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / "instances_train.json").write_text(text)
        return open_data(str(tmp_path), "objects", val_fraction=0.0)

    return run


def contents(source: ObjectSource) -> dict[str, tuple[tuple[str, ...], list[int]]]:
    found = {}
    for i in range(len(source)):
        image, objects = source.pair(i)
        assert objects.size == (image.height, image.width)
        found[Path(source.sample_id(i)).name] = objects.names, objects.areas.tolist()
    return found


def strings(r: Record) -> None:
    for entry in (*r["annotations"], *r["images"]):
        for key in ("image_id", "category_id"):
            if key in entry:
                entry[key] = str(entry[key])
    r["images"][0].update(id=0.0, height="40", width=60.0)


def crowd_words(r: Record) -> None:
    for entry, flag in zip(r["annotations"], ("0", False, None, "false", 0.0, ""), strict=True):
        entry["iscrowd"] = flag


def flat(r: Record) -> None:
    for entry in r["annotations"]:
        (entry["segmentation"],) = entry["segmentation"]


def backslashes(r: Record) -> None:
    for entry in r["images"]:
        entry["file_name"] = f"images\\{entry['file_name']}"


def listed_twice(r: Record) -> None:
    r["images"].append(dict(r["images"][0]))


@pytest.mark.parametrize("change", [strings, crowd_words, flat, backslashes, listed_twice])
def test_other_spellings_are_read(survived: Survived, read: Callable[..., Splits[ObjectSource]], change: Any) -> None:
    changed = record()
    change(changed)
    plain, odd = read(record()), read(changed)
    assert odd.problems == ()
    assert contents(odd.named["train"]) == contents(plain.named["train"])
    assert contents(odd.named["train"])["1.png"] == (("a",), [100])
    survived("COCO file in another spelling (ids, flags, polygons, paths): read right")


def same_id(r: Record) -> None:
    r["images"][1]["id"] = 0
    r["annotations"][1]["image_id"] = 0


def no_masks(r: Record) -> None:
    r["annotations"][0]["segmentation"] = []
    r["annotations"][1]["segmentation"] = None
    del r["annotations"][2]["segmentation"]


@pytest.mark.parametrize(
    ("change", "left", "reason"),
    [
        (same_id, ["2.png", "3.png", "4.png", "5.png"], "0.png and 1.png share the image id 0"),
        (no_masks, ["3.png", "4.png", "5.png"], "3 annotations have no segmentation .*the first is annotation 100"),
    ],
)
def test_doubtful_entries_are_left_out_and_listed(
    survived: Survived, read: Callable[..., Splits[ObjectSource]], change: Any, left: list[str], reason: str
) -> None:
    changed = record()
    change(changed)
    sets = read(changed)
    assert list(contents(sets.named["train"])) == left
    ((_, text),) = sets.problems
    with pytest.raises(ValueError, match=reason):
        raise ValueError(text)
    survived("COCO file with entries that cannot be used: left out and listed, or one line with the id")


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        ("images", {"height": None}, "image 2 is not as COCO has it"),
        ("images", {"id": None}, r"image at place 2 \(without an id\)"),
        ("images", {"file_name": ...}, "image 2 is not as COCO has it: it has no 'file_name'"),
        ("annotations", {"image_id": ...}, "annotation 102 is not as COCO has it: it has no 'image_id'"),
        ("annotations", {"iscrowd": "maybe"}, "annotation 102 .*iscrowd is 'maybe', need 0 or 1"),
        ("annotations", {"image_id": [1]}, r"annotation 102 .*an id is \[1\]"),
    ],
)
def test_entries_without_sense_are_named(
    survived: Survived, read: Callable[..., Splits[ObjectSource]], kind: str, entry: Record, message: str
) -> None:
    changed = record()
    changed[kind][2] = {k: v for k, v in {**changed[kind][2], **entry}.items() if v is not ...}
    with pytest.raises(ValueError, match=message):
        read(changed)
    survived("COCO file with entries that cannot be used: left out and listed, or one line with the id")


def test_boxes_alone_say_so(read: Callable[..., Splits[ObjectSource]]) -> None:
    changed = record()
    for entry in changed["annotations"]:
        entry["segmentation"] = []
    with pytest.raises(ValueError, match="none of the 6 training images has an object; 6 annotations have no segm"):
        read(changed)


def test_annotations_of_a_photo_that_exif_turns(tmp_path: Path, survived: Survived) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[5:15, 0:10] = 255
    Image.fromarray(stored).save(tmp_path / "0.png", exif=exif.tobytes())
    odd = record()
    odd["images"], odd["annotations"] = odd["images"][:1], odd["annotations"][:1]
    (tmp_path / "instances_train.json").write_text(json.dumps(odd))
    image, objects = open_data(str(tmp_path), "objects", val_fraction=0.0).named["train"].pair(0)
    assert objects.size == (60, 40)
    assert np.array_equal(np.asarray(image)[..., 0] > 0, objects.mask(0))
    survived("masks of photos that EXIF turns: matched by size")


@pytest.mark.long
def test_endless_polygons_are_refused_before_they_take_memory(
    survived: Survived, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    many = (rng.random(2_000_000) * 1000).tolist()
    long = np.tile([0.0, 0.0, 999.0, 999.0], 3000).tolist()
    cases = (
        (
            many,
            "a polygon has 1,000,000 corners, above the limit of 100,000 corners; VISIONZOO_MAX_POLYGON_CORNERS raises",
        ),
        (
            long,
            "the outline of a polygon has 5,99.* pixels, above .*; VISIONZOO_MAX_POLYGON_PIXELS raises it, or write",
        ),
    )
    for polygon, message in cases:
        tracemalloc.start()
        with pytest.raises(UnreadableImage, match=message):
            read_segmentation([polygon], 1000, 1000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**27
    monkeypatch.setenv("VISIONZOO_MAX_POLYGON_PIXELS", "6M")
    assert sum(read_segmentation([long], 1000, 1000).uncompressed()["counts"]) == 1_000_000
    angles = np.linspace(0, 2 * np.pi, 50_000)
    circle = (500 + 400 * np.stack([np.cos(angles), np.sin(angles)], axis=1)).reshape(-1).tolist()
    assert abs(read_segmentation([circle], 1000, 1000).area / (np.pi * 160_000) - 1) < 0.01
    survived("polygon that would take gigabytes: refused before", 2)


DEEP = "[" * 10_000


def test_nested_brackets_are_one_line(
    survived: Survived, read: Callable[..., Splits[ObjectSource]], tmp_path: Path
) -> None:
    for text in (DEEP, json.dumps(record()).replace("[[0, 5", DEEP, 1)):
        with pytest.raises(ValueError, match="nested too deeply"):
            read(text)
    # Around what the parser takes, the writer may take less: no RecursionError there either.
    deepest = record()
    deepest["annotations"][0]["segmentation"] = "DEEP"
    for depth in range(900, 1000, 9):
        with contextlib.suppress(ValueError):
            read(json.dumps(deepest).replace('"DEEP"', "[" * depth + "]" * depth)).named["train"].objects(0)
    survived("brackets nested 10,000 deep: one line, or one bad sample", 2)


def test_nested_brackets_beside_an_image_are_one_bad_sample(survived: Survived, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "sa_1.png")
    (tmp_path / "sa_1.json").write_text(DEEP)
    source = open_data(str(tmp_path), "objects", val_fraction=0.0).named["train"]
    with pytest.raises(UnreadableImage, match=r"its annotations: .*nested too deeply"):
        source.objects(0)
    survived("brackets nested 10,000 deep: one line, or one bad sample")
