"""What the doctor writes is read again, of every kind of data: by the readers, and by a training of a step."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import visionzoo as vz
from visionzoo.curation import doctor
from visionzoo.curation.findings import Finding, Findings
from visionzoo.curation.write import write_clean
from visionzoo.data.sources.objects import ObjectSource
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.reading import Kind

#: Pictures, of which the last is the first again; names as people have them, one with a line end, one not UTF-8.
NAMES = ["a", "b, c", 'd "e"', "ünï", "line\nend", "f'g", os.fsdecode(b"h\xff"), "i;j", "twin"]


def _pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    pixels = [np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8) for _ in NAMES]
    return [Image.fromarray(each) for each in [*pixels[:-1], pixels[0]]]


def _saved(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{name}.png" for name in NAMES]
    for path, picture in zip(paths, _pictures(), strict=True):
        picture.save(path)
    return paths


def _folders(root: Path) -> Path:
    for k, path in enumerate(_saved(root / "all")):
        (root / "data" / "xy"[k % 2]).mkdir(parents=True, exist_ok=True)
        path.rename(root / "data" / "xy"[k % 2] / path.name)
    return root / "data"


def _manifest(labels: list[str]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        paths = _saved(root / "images")
        with (root / "data.csv").open("w", errors="surrogateescape", newline="") as file:
            rows = [(path, labels[k % len(labels)]) for k, path in enumerate(paths)]
            csv.writer(file).writerows([("image", "label"), *rows])
        return root / "data.csv"

    return make


def _parquet(root: Path) -> Path:
    rows = []
    for picture in _pictures():
        data = io.BytesIO()
        picture.save(data, "PNG")
        rows.append({"bytes": data.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": ["xy"[k % 2] for k in range(len(rows))]}), root / "data.parquet")
    return root / "data.parquet"


def _captions(root: Path) -> Path:
    texts = ["“another” caption\nof two lines", "one"]
    lines = [
        json.dumps({"image": str(path), "captions": texts}, ensure_ascii=False) for path in _saved(root / "images")
    ]
    (root / "data.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return root / "data.jsonl"


def _shards(root: Path) -> Path:
    (root / "data/train").mkdir(parents=True)
    with tarfile.open(root / "data/train/0.tar", "w") as tar:
        for k, picture in enumerate(_pictures()):
            data = io.BytesIO()
            picture.save(data, "PNG")
            for ending, member in (("png", data.getvalue()), ("txt", f"caption {k}".encode())):
                info = tarfile.TarInfo(f"{k}.{ending}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    return root / "data"


def _mask(k: int) -> np.ndarray:
    mask = np.zeros((32, 32), np.uint8)
    mask[4:14, 4:14], mask[16 : 20 + k, 16:28] = 1, 2
    return mask


def _label_maps(root: Path) -> Path:
    for k, path in enumerate(_saved(root / "data/images")):
        (root / "data/masks").mkdir(exist_ok=True)
        Image.fromarray(_mask(k)).save(root / "data/masks" / path.name)
    return root / "data"


def _coco(root: Path) -> Path:
    images, annotations = [], []
    for k, picture in enumerate(_pictures()):
        (root / "data/train").mkdir(parents=True, exist_ok=True)
        picture.save(root / f"data/train/{k}, ü.png")
        images.append({"id": f"x{k}", "file_name": f"{k}, ü.png", "height": 32, "width": 32})
        box = [4, 4, 20, 4, 20, 20 + k, 4, 20 + k]
        annotations.append({"image_id": f"x{k}", "category_id": 3, "segmentation": [box]})
    record = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "é"}]}
    (root / "data/instances_train.json").write_text(json.dumps(record))
    return root / "data"


def _images(root: Path) -> Path:
    _saved(root / "data")
    return root / "data"


def _no_class(root: Path) -> Path:
    """No class applies to the first, the last is not labelled; no image has two."""
    saved = _saved(root / "data")
    labels = [[], ["y"], *[["x"]] * (len(saved) - 3), None]
    rows = [{"image": str(p), "label": label} for p, label in zip(saved, labels, strict=True)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (root / "data.jsonl").write_text(text, "utf-8", "surrogateescape")
    return root / "data.jsonl"


NANO = ["--model.backbone", "vit_nano_patch4_32", "--model.image_size", "16"]
SAM = ["--model.backbone", "vit_nano_patch4_32", "--model.image_size", "32", "--model.decoder_dim", "16"]
SAM += ["--model.embedding_stride", "8", "--model.clicks", "1", "--model.mask_rounds", "1", "--model.encoder", "full"]
#: name -> (how the data are made, their kind, the task that reads them, options of a small model)
KINDS: dict[str, tuple[Callable[[Path], Path], Kind, list[str]]] = {
    "folders": (_folders, "labels", ["classify", *NANO]),
    "manifest": (_manifest(["x", "y"]), "labels", ["classify", *NANO]),
    "several labels": (_manifest(["x|y", "y", "x"]), "labels", ["classify", *NANO]),
    "several labels or none": (_no_class, "labels", ["classify", *NANO]),
    "parquet": (_parquet, "labels", ["classify", *NANO]),
    "images": (_images, "images", ["mae", *NANO, "--model.decoder_depth", "1"]),
    "captions": (_captions, "captions", ["clip", *NANO, "--model.text", "tiny"]),
    "captions in shards": (_shards, "captions", ["clip", *NANO, "--model.text", "tiny"]),
    "label maps": (_label_maps, "objects", ["segment", *SAM]),
    "coco": (_coco, "objects", ["segment", *SAM]),
}


@pytest.fixture(autouse=True)
def pixels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError("no weights here")

    monkeypatch.setattr(doctor, "open_eye", missing)


def _clean(name: str, root: Path) -> tuple[Path, Path, Findings]:
    path = KINDS[name][0](root)
    found = vz.data_doctor(path, out=root / "out")
    return path, next((root / "out").glob("clean*")), found


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_again_without_the_twin(name: str, tmp_path: Path) -> None:
    path, clean, found = _clean(name, tmp_path)
    kind = KINDS[name][1]
    assert found.kind == kind
    assert [f.reason for f in found.findings if f.reason == "twin"] == ["twin"]
    before, after = (open_data(str(p), kind, val_fraction=0.0) for p in (path, clean))
    assert after.problems == ()
    assert len(after.first) == len(before.first) - 1
    gone = {f.place for f in found.of("twin")}
    kept = [i for i in range(len(before.first)) if i not in gone]
    assert after.classes == before.classes
    for new, old in enumerate(kept):
        assert np.array_equal(np.asarray(after.first.read(new)), np.asarray(before.first.read(old)))
        if kind == "captions":
            assert after.first.captions(new) == before.first.captions(old)
        if isinstance(before.first, ObjectSource):
            assert np.array_equal(after.first.objects(new).mask(0), before.first.objects(old).mask(0))
    if kind == "labels":
        assert after.multi_label == before.multi_label
        assert np.array_equal(after.first.targets, before.first.targets[kept])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_a_training_reads_it(name: str, tmp_path: Path) -> None:
    from visionzoo.cli.train import run

    _, clean, _ = _clean(name, tmp_path)
    task, *model = KINDS[name][2]
    options = ["--data.num_workers", "0", "--data.batch_size", "2", "--trainer.accelerator", "cpu"]
    options += ["--data.path", str(clean), "--trainer.max_steps", "1", "--run_dir", str(tmp_path / "run")]
    assert run([task, "fit", *model, *options]) == 0


def test_captions_and_masks_go_while_their_image_stays(tmp_path: Path) -> None:
    path = _captions(tmp_path)
    splits = open_data(str(path), "captions", val_fraction=0.0)

    def wrong(place: int, part: int, reason: str = "caption") -> Finding:
        return Finding(reason=reason, split="train", place=place, image="", text="", score=1.0, part=part)

    found = [wrong(1, 0), wrong(2, 0), wrong(2, 1), wrong(3, 1, "weak caption")]
    answer = Findings(path="", kind="captions", model="", images={}, classes=(), findings=tuple(found))
    write_clean(tmp_path, splits, "captions", answer)
    after = open_data(str(tmp_path / "clean.jsonl"), "captions", val_fraction=0.0).first
    assert len(after) == len(NAMES) - 1  # the image of which no caption is left is gone
    assert [len(after.captions(i)) for i in range(3)] == [2, 1, 2]


def test_what_an_earlier_look_wrote_does_not_stay(tmp_path: Path) -> None:
    path, clean, _ = _clean("manifest", tmp_path)
    (tmp_path / "out/suggested.csv").write_text("image,label\n")
    vz.data_doctor(path, out=tmp_path / "out")
    assert clean.is_file()
    assert not (tmp_path / "out/suggested.csv").exists()
    with pytest.raises(ValueError, match="holds the data themselves; name a new folder"):
        vz.data_doctor(clean, out=tmp_path / "out")
    assert clean.is_file()
