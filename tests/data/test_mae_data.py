"""Images without labels, and labelled ones whose labels are not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visionzoo.data.images import image_extensions
from visionzoo.data.mae import MaeData
from visionzoo.data.sources.open import open_data
from visionzoo.types import Preprocess

SPEC = Preprocess(image_size=(8, 8))


def pictures(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (i, 2 * i, 3 * i)).save(path)
    assert ".png" in image_extensions()
    return folder


def data(path: str | Path, **options: object) -> MaeData:
    module = MaeData(str(path), num_workers=0, **options)  # type: ignore[arg-type]
    module.preprocess = SPEC
    return module


def test_a_folder_of_images_at_any_depth_is_split(tmp_path: Path) -> None:
    module = data(pictures(tmp_path / "photos", [f"{i % 3}/deep/{i}.png" for i in range(40)]), batch_size=8)
    assert (len(module.train_source or ()), len(module.val_source or ())) == (38, 2)  # 0.05 held out
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (8, 3, 8, 8)
    assert batch.labels.tolist() == [-1] * 8
    held = next(iter(module.val_dataloader()))  # type: ignore[arg-type]
    assert len(held.images) == 2


def test_split_folders_are_used_as_they_are(tmp_path: Path) -> None:
    folder = pictures(tmp_path, ["train/a/1.png", "train/2.png", "val/3.png", "other/4.png"])
    module = data(folder)
    assert (len(module.train_source or ()), len(module.val_source or ())) == (2, 1)


@pytest.mark.parametrize("kind", ["images", "captions"])
def test_a_class_called_train_is_no_split(kind: Any, tmp_path: Path, class_tree: Callable[..., Path]) -> None:
    """CIFAR-100 has one, beside apples and buses."""
    tree = class_tree({"apple": 5, "bus": 5, "train": 3})
    for file in tree.rglob("*.png"):
        file.with_suffix(".txt").write_text("a picture\n")
    with pytest.warns(UserWarning, match="has apple, bus beside train, which is read as one folder beside them"):
        assert sum(len(s) for _, s in open_data(str(tree), kind).items()) == 13
    (tree / "train" / "n").mkdir()
    for file in list((tree / "train").glob("*.*")):
        file.rename(tree / "train" / "n" / file.name)
    with pytest.warns(UserWarning, match="beside train, which is a split, and they are not read"):
        assert sum(len(s) for _, s in open_data(str(tree), kind).items()) == 3
    (tree / "bus").rename(tree / "val")  # two splits, and a folder that belongs to neither
    found = open_data(str(tree), kind)
    assert (len(found.train or ()), len(found.val or ())) == (3, 5)


def test_labels_of_labelled_data_are_not_read(tmp_path: Path, class_tree: Callable[..., Path]) -> None:
    assert len(data(class_tree({"a": 30, "b": 10}, "tree")).train_source or ()) == 38
    digits = data("digits", val_fraction=0.0)
    assert digits.val_source is None
    assert len(digits.train_source or ()) == 1797
    assert digits.val_dataloader() == []
    manifest = tmp_path / "list.csv"  # without any label column, which training a classifier needs
    pictures(tmp_path, ["1.png", "2.png", "3.png"])
    manifest.write_text("image\n1.png\n2.png\n3.png\n")
    assert len(data(manifest, val_fraction=0.34).train_source or ()) == 2


def test_parquet_without_labels(tmp_path: Path) -> None:
    pictures(tmp_path, ["x.png"])
    raw = (tmp_path / "x.png").read_bytes()
    table = pa.table({"image": [{"bytes": raw, "path": None}] * 10})
    pq.write_table(table, tmp_path / "train.parquet")
    module = data(tmp_path / "train.parquet", val_fraction=0.2, batch_size=4)
    assert next(iter(module.train_dataloader())).images.shape == (4, 3, 8, 8)
    assert len(module.val_source or ()) == 2


def test_a_budget_and_the_pictures_for_sheets() -> None:
    module = data("digits", train_limit=100)
    assert len(module.train_source or ()) == 100
    batch = module.sample_batch(5)
    assert batch.images.shape == (5, 3, 8, 8)
    assert batch.index.tolist() == np.linspace(0, len(module.val_source or ()) - 1, 5).round().astype(int).tolist()
    assert module.fingerprint() != data("digits").fingerprint()


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        data(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"val_fraction=1.0 must be in \[0, 1\)"):
        data("digits", val_fraction=1.0)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        data(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no test split"):
        data("digits").test_dataloader()
