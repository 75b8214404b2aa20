from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import visionzoo as vz
from visionzoo.data.images import open_image
from visionzoo.data.transforms import EvalTransform
from visionzoo.inference.embedding import embed_to_parquet
from visionzoo.models.preprocess import Normalize


def matrix(table: pq.ParquetFile) -> np.ndarray:
    return np.stack(table.column("embedding").to_numpy(zero_copy_only=False))


def test_a_run_on_a_folder_of_images(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no")
    out = tmp_path / "features.parquet"
    report = embed_to_parquet(photos, run_folder, out, labels=False, batch_size=4, device="cpu")
    table = pq.read_table(out)
    names = ["a.png", "b.jpg", "deep/c.webp", "deep/d.bmp", "e.gif", "f.png"]
    assert table.column("id").to_pylist() == [str(photos / n) for n in names]
    assert table.column("label").to_pylist() == [None] * 6
    (bad,) = report.unreadable
    assert (report.rows, bad.name) == (6, str(photos / "bad.png"))
    classifier = vz.ImageClassifier.load(run_folder, device="cpu")
    np.testing.assert_allclose(matrix(table), classifier.embed([photos / n for n in names]), rtol=1e-4, atol=1e-5)
    assert str(table.schema.field("embedding").type) == f"fixed_size_list<element: float>[{report.width}]"
    assert table.schema.metadata[b"visionzoo.model"] == run_folder.name.encode()


def test_a_backbone_on_class_folders(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for label, names in (("cat", ("a.png", "f.png")), ("dog", ("b.jpg", "e.gif"))):
        for name in names:
            (data / "train" / label).mkdir(parents=True, exist_ok=True)
            os.link(photos / name, data / "train" / label / name)
    (data / "val" / "cat").mkdir(parents=True)
    (data / "val" / "dog").mkdir(parents=True)
    os.link(photos / "deep" / "c.webp", data / "val" / "cat" / "c.webp")
    os.link(photos / "deep" / "d.bmp", data / "val" / "dog" / "d.bmp")
    out = tmp_path / "features.parquet"
    torch.manual_seed(0)
    embed_to_parquet(data, "vit_nano_patch4_32", out, weights="random", image_size=24, device="cpu")
    table = pq.read_table(out)
    rows = table.select(["split", "label"]).to_pylist()
    assert sorted((r["split"], r["label"]) for r in rows) == [
        ("train", "cat"),
        ("train", "cat"),
        ("train", "dog"),
        ("train", "dog"),
        ("val", "cat"),
        ("val", "dog"),
    ]
    torch.manual_seed(0)
    backbone = vz.create_backbone("vit_nano_patch4_32", image_size=24).eval()
    for path, row in zip(table.column("id").to_pylist(), matrix(table), strict=True):
        pixels = EvalTransform(backbone.preprocess)(open_image(path))
        with torch.no_grad():
            expected = backbone(Normalize(backbone.preprocess)(pixels[None])).pooled[0]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)
    assert json.loads(table.schema.metadata[b"visionzoo.preprocess"])["image_size"] == [24, 24]


def test_built_in_digits(tmp_path: Path) -> None:
    report = embed_to_parquet(
        "digits", "vit_nano_patch4_32", tmp_path / "d.parquet", weights="random", image_size=16, batch_size=256
    )
    table = pq.read_table(tmp_path / "d.parquet")
    assert report.rows == table.num_rows == 1797
    assert set(table.column("label").to_pylist()) == {str(d) for d in range(10)}


def test_a_table_that_is_data_is_not_written_over(photos: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": p.read_bytes(), "path": None} for p in sorted(photos.rglob("*.png"))[:3]]
    pq.write_table(pa.table({"image": images, "label": ["a", "b", "a"][: len(images)]}), tmp_path / "photos.parquet")
    before = (tmp_path / "photos.parquet").read_bytes()
    embed = partial(embed_to_parquet, model="vit_nano_patch4_32", weights="random", device="cpu")
    with pytest.raises(ValueError, match="was not written by embed; it may be data"):
        embed(tmp_path / "photos.parquet", out=tmp_path / "photos.parquet")
    assert (tmp_path / "photos.parquet").read_bytes() == before
    for _ in range(2):  # its own is written anew
        assert embed(tmp_path / "photos.parquet", out=tmp_path / "found.parquet").rows == len(images)


def test_nothing_is_left_of_a_failure(photos: Path, tmp_path: Path, run_folder: Path) -> None:
    out = tmp_path / "out" / "f.parquet"
    with pytest.raises(ValueError, match="unknown backbone 'vit_nan'"):
        embed_to_parquet(photos, "vit_nan", out, labels=False)
    with pytest.raises(ValueError, match="leave the options out"):
        embed_to_parquet(photos, run_folder, out, labels=False, image_size=64)
    with pytest.raises(FileNotFoundError):
        embed_to_parquet(tmp_path / "gone", run_folder, out)
    with pytest.raises(ValueError, match="batch_size=0"):
        embed_to_parquet(photos, run_folder, out, labels=False, batch_size=0)
    assert not out.exists()
    assert not out.parent.exists() or os.listdir(out.parent) == []


def test_several_labels_and_none(photos: Path, tmp_path: Path) -> None:
    manifest = photos / "list.csv"
    manifest.write_text("image,label,split\na.png,cat|dog,train\nb.jpg,,train\nf.png,dog,train\ne.gif,cat,val\n")
    embed_to_parquet(
        manifest, "vit_nano_patch4_32", tmp_path / "f.parquet", weights="random", batch_size=2, device="cpu"
    )
    rows = pq.read_table(tmp_path / "f.parquet").select(["id", "label", "split"]).to_pylist()
    found = {Path(r["id"]).name: (r["split"], r["label"]) for r in rows}
    assert found["a.png"] == ("train", ["cat", "dog"])
    assert found["f.png"] == ("train", ["dog"])
    assert found["e.gif"] == ("val", ["cat"])
    assert found["b.jpg"] == ("train", None)
