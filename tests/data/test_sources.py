"""Every kind of source, on tiny data: what it reads, and what it says about data it cannot use."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visionzoo.data.classify import ClassifyData
from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.base import class_counts, fingerprint
from visionzoo.data.sources.folder import open_unlabelled
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.split import stratified_limit, stratified_split

CLASS_LABEL = {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}


def write_parquet(path: Path, cells: list[Any], labels: list[Any], features: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, image_type), "label": pa.array(labels)})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return path


def assert_pickles(source: Any) -> None:
    copy = pickle.loads(pickle.dumps(source))
    assert copy.sample_id(0) == source.sample_id(0)
    assert np.array_equal(np.asarray(copy.read(0)), np.asarray(source.read(0)))


# Class folders


def test_folders_with_splits(class_tree) -> None:
    root = class_tree({"train/dog": 3, "train/cat": 2, "val/cat": 1, "val/dog": 1, "test/cat": 1, "test/dog": 2})
    splits = open_data(root)
    assert splits.classes == ("cat", "dog")
    assert splits.train is not None
    assert splits.val is not None
    assert splits.train.targets.tolist() == [0, 0, 1, 1, 1]
    assert [name for name, _ in splits.items()] == ["train", "val", "test"]
    assert splits.val.sample_id(0) == str(root / "val/cat/000.png")
    assert_pickles(splits.train)


def test_one_tree_is_split_by_seed_and_class(class_tree) -> None:
    root = class_tree({"cat": 10, "dog": 20, "eel": 1})
    splits = open_data(root, seed=1)
    assert splits.train is not None
    assert splits.val is not None
    assert class_counts(splits.train).tolist() == [8, 16, 1]
    assert class_counts(splits.val).tolist() == [2, 4, 0]
    ids = [{source.sample_id(i) for i in range(len(source))} for _, source in splits.items()]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 31
    again, other = open_data(root, seed=1), open_data(root, seed=2)
    assert fingerprint(again) == fingerprint(splits) != fingerprint(other)
    whole = open_data(root, val_fraction=1.0)
    assert whole.train is None
    assert len(whole.first) == 31
    assert open_data(root, val_fraction=0.0).val is None


def test_the_fingerprint_does_not_depend_on_the_place(class_tree) -> None:
    one, two = class_tree({"a": 3, "b": 3}, "one"), class_tree({"a": 3, "b": 3}, "two")
    assert fingerprint(open_data(one)) == fingerprint(open_data(two))
    (two / "a" / "000.png").rename(two / "b" / "new.png")
    assert fingerprint(open_data(one)) != fingerprint(open_data(two))


def test_odd_names_links_and_other_files(class_tree, tmp_path: Path, encode) -> None:
    root = class_tree({"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/dog": 1})
    cat = root / "train" / "cat"
    (cat / "deep" / "er").mkdir(parents=True)
    (cat / "deep" / "er" / "x.JPEG").write_bytes(encode(1, "JPEG"))
    (cat / "notes.txt").write_text("no image")
    (cat / "._000.png").write_bytes(b"resource fork")
    (cat / "up").symlink_to(root / "train", target_is_directory=True)
    (cat / "self.png").symlink_to("self.png")
    Path(os.fsdecode(os.fsencode(cat) + b"/\xff\xfe.png")).write_bytes(encode(2))
    source = open_data(root).train
    assert source is not None
    names = [Path(source.sample_id(i)).name for i in range(len(source)) if source.targets[i] == 0]
    # The link to the folder above brings its other class in once, and does not go round in circles.
    assert sorted(set(names)) == ["000.png", "\\xff\\xfe.png", "self.png", "x.JPEG"]
    for i in range(len(source)):
        if "self.png" in source.sample_id(i):
            with pytest.raises(UnreadableImage, match="symbolic links"):
                source.read(i)
        else:
            assert source.read(i).size == (12, 10)
        source.sample_id(i).encode()


def test_a_class_called_train_is_a_class(class_tree) -> None:
    assert open_data(class_tree({"bus": 5, "train": 5})).classes == ("bus", "train")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 2, "dog": 0}, "1 class folders without images: 'dog'"),
        ({"cat": 2}, "one class, 'cat'"),
        ({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/cow": 1}, "val has class 'cow'"),
        ({"cat": 0, "dog": 0}, "no images"),
        ({".": 3}, "3 images but no subfolders"),
        ({".": 0}, "no images"),
    ],
)
def test_folders_that_cannot_be_learned_from(class_tree, counts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_data(class_tree(counts))


def test_a_missing_folder_suggests_near_names(class_tree) -> None:
    root = class_tree({"cat": 1, "dog": 1}, "flowers")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*/flowers"):
        open_data(root.parent / "flower")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*/flowers"):
        open_data(root.parent / "flower" / "train")


def test_missing_classes_and_unread_folders_are_said(class_tree) -> None:
    root = class_tree({"train/cat": 2, "train/dog": 2, "val/cat": 1, "raw/x": 1})
    with pytest.warns(UserWarning, match="val has no images") as said:
        open_data(root, val_fraction=0.5)
    texts = " ".join(str(w.message) for w in said)
    assert "val has no images of 1 of 2 classes: dog" in texts
    assert "not read: ['raw']" in texts
    assert "val_fraction=0.5 is not used" in texts


def test_given_classes_set_the_order(class_tree) -> None:
    root = class_tree({"cat": 2, "dog": 2})
    splits = open_data(root, classes=["dog", "cat"], val_fraction=1.0)
    assert splits.first.targets.tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="class 'cat' that the class list does not have"):
        open_data(root, classes=["dog", "cow"])


# Parquet


def test_parquet_in_the_hubs_layout(tmp_path: Path, encode) -> None:
    cells = [{"bytes": encode(i), "path": f"{i}.png"} for i in range(5)]
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", cells[:3], [2, 0, 1], CLASS_LABEL)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", cells[3:], [1, 1], CLASS_LABEL)
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", cells[:3], [0, 1, 2], CLASS_LABEL)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", cells[:2], [-1, -1], CLASS_LABEL)
    splits = open_data(tmp_path)
    assert splits.classes == ("ant", "bee", "cat")
    assert splits.train is not None
    assert splits.train.targets.tolist() == [2, 0, 1, 1, 1]
    assert splits.test is None, "labels kept secret are no labels"
    assert splits.train.sample_id(4).endswith("train-00001-of-00002.parquet:1")
    for i in range(5):
        assert splits.train.raw(i) == encode(i)
    assert_pickles(splits.train)


def test_parquet_beyond_memory_reads_row_groups(tmp_path: Path, encode, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionzoo.data.sources import parquet

    cells = [{"bytes": encode(i), "path": None} for i in range(9)]
    path = write_parquet(tmp_path / "train.parquet", cells, [i % 3 for i in range(9)], CLASS_LABEL)
    monkeypatch.setattr(parquet, "MEMORY_LIMIT", 100)
    monkeypatch.setattr(parquet, "CACHED_GROUPS", 2)
    with pytest.warns(UserWarning, match="slow"):
        source = parquet.ParquetSource([str(path)])
    source.preload()
    assert [source.raw(i) == encode(i) for i in (8, 0, 4, 1, 7, 2)] == [True] * 6
    assert len(source._cache) == 2


def test_parquet_with_holes(tmp_path: Path, encode) -> None:
    (tmp_path / "there.png").write_bytes(encode(7))
    cells = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "there.png"}, {"bytes": b"", "path": "x"}]
    source = open_data(
        write_parquet(tmp_path / "t.parquet", cells, [0, 1, 2, None], CLASS_LABEL), val_fraction=0.0
    ).train
    assert source is not None
    assert [source.has_label(i) for i in range(4)] == [True, True, True, False]
    assert source.read(2).size == (12, 10)
    for i, reason in ((0, "null"), (1, "null"), (3, "zero bytes")):
        with pytest.raises(UnreadableImage, match=reason):
            source.read(i)


def test_parquet_labels_of_other_types(tmp_path: Path, encode) -> None:
    cells = [{"bytes": encode(i), "path": None} for i in range(4)]
    names = open_data(write_parquet(tmp_path / "a.parquet", cells, ["b", "a", "b", "a"]), val_fraction=0.5)
    assert names.classes == ("a", "b")
    numbers = open_data(write_parquet(tmp_path / "b.parquet", cells, [10, 2, 10, 2]), val_fraction=0.5)
    assert numbers.classes == ("2", "10")
    features = {"label": {"feature": CLASS_LABEL["label"], "_type": "Sequence"}}
    many = open_data(write_parquet(tmp_path / "c.parquet", cells, [[0, 2], [], [1], None], features), val_fraction=0.0)
    assert many.multi_label
    assert many.first.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [-1, -1, -1]]
    assert class_counts(many.first).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3], r"t.parquet:2: label 3 is out of range; there are 3 classes, so 0..2"),
        ([0, -2, 1], "t.parquet:1: label -2"),
    ],
)
def test_parquet_labels_out_of_range(tmp_path: Path, encode, labels: list[int], message: str) -> None:
    cells = [{"bytes": encode(i), "path": None} for i in range(3)]
    with pytest.raises(ValueError, match=message):
        open_data(write_parquet(tmp_path / "t.parquet", cells, labels, CLASS_LABEL))


def test_parquet_columns_and_broken_files(tmp_path: Path, encode) -> None:
    table = pa.table({"photo": pa.array([encode(0), encode(1)]), "kind": ["a", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"no column 'image'; it has \['photo', 'kind'\].*--data.image_column"):
        open_data(tmp_path / "t.parquet")
    splits = open_data(tmp_path / "t.parquet", image_column="photo", label_column="kind", val_fraction=0.0)
    assert splits.first.read(1).size == (12, 10)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        open_data(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "column",
    [
        [[{"bytes": b"x", "path": None}]] * 2,
        [[1, 2, 3]] * 2,
        [7, 8],
        [{"width": 3}] * 2,
        [{"bytes": [1, 2]}] * 2,
    ],
)
def test_parquet_columns_that_hold_no_files_say_so_at_the_start(tmp_path: Path, column: list[Any]) -> None:
    pq.write_table(pa.table({"image": column, "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"the column 'image' holds .*; an image is bytes of a file"):
        open_data(tmp_path / "t.parquet")


# Manifests


def test_csv_with_splits_relative_names_and_aliases(class_tree) -> None:
    root = class_tree({"pics": 4})
    rows = [
        "file_name,class,split",
        "pics/000.png,cat,train",
        "pics/001.png,dog,train",
        "pics/002.png,cat,valid",
        "pics/003.png,dog,valid",
    ]
    (root / "all.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    splits = open_data(root / "all.csv")
    assert splits.classes == ("cat", "dog")
    assert [len(source) for _, source in splits.items()] == [2, 2]
    assert splits.train is not None
    assert splits.train.read(1).size == (12, 10)
    assert_pickles(splits.train)


def test_a_folder_of_manifests(class_tree) -> None:
    root = class_tree({"pics": 3})
    (root / "train.jsonl").write_text(
        '{"image": "pics/000.png", "label": 0}\n\n{"image": "pics/001.png", "label": 1}\n'
    )
    (root / "val.jsonl").write_text('{"image": "pics/002.png", "label": 1}\n')
    with pytest.warns(UserWarning, match="val has no images of 1"):
        splits = open_data(root)
    assert splits.classes == ("0", "1")
    assert splits.val is not None
    assert splits.val.targets.tolist() == [1]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_multi_label_manifests(class_tree, kind: str) -> None:
    root = class_tree({"pics": 3})
    labels = [["cat", "dog"], ["dog"], []]
    if kind == "csv":
        lines = ["image,label", *(f"pics/00{i}.png,{'|'.join(names) or '|'}" for i, names in enumerate(labels))]
    else:
        lines = [json.dumps({"image": f"pics/00{i}.png", "label": names}) for i, names in enumerate(labels)]
    (root / f"m.{kind}").write_text("\n".join(lines))
    splits = open_data(root / f"m.{kind}", val_fraction=0.0)
    assert splits.multi_label
    assert splits.first.targets.tolist() == [[1, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "picture,label\na.png,1\n", "no column 'image'; it has"),
        ("m.csv", "image,kind\na.png,1\n", "no column 'label'; it has"),
        ("m.csv", "", "has no rows"),
        ("m.jsonl", '{"image": "a.png", "label": 1}\n{"image"', "line 2 is not JSON"),
        ("m.jsonl", "[1, 2]", "item 1 is int"),
        ("m.jsonl", '{"image": "a.png", "label": 1.5}', "line 1: label 1.5 is not"),
        ("m.jsonl", '{"image": "a.png", "label": {"a": 1}}', "line 1: label .* is not"),
        ("m.jsonl", '{"image": "a.png", "label": -3}', "line 1: label -3 is out of range"),
        ("m.csv", "image,label,split\na.png,1,train\nb.png,2,holdout\n", "cannot use the split 'holdout'"),
        ("m.txt", "a.png", "files can be .parquet or .csv"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path / name)


def test_rows_without_file_or_label_stay_and_are_unreadable(class_tree) -> None:
    root = class_tree({"pics": 2})
    (root / "m.csv").write_text("image,label\n,cat\npics/000.png,\npics/001.png,dog\nno.png,cat\n")
    source = open_data(root / "m.csv", val_fraction=0.0).first
    assert source.targets.tolist() == [0, -1, 1, 0]
    with pytest.raises(UnreadableImage, match="no file name"):
        source.read(0)
    with pytest.raises(UnreadableImage, match="no such file"):
        source.read(3)


# Named sets


def write_mnist(root: Path) -> None:
    for part, count in (("train", 6), ("t10k", 4)):
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        images = struct.pack(">IIII", 0x803, count, 28, 28) + bytes(range(196)) * 4 * count
        labels = struct.pack(">II", 0x801, count) + bytes(i % 2 for i in range(count))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            (raw / name).write_bytes(content)
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))


@pytest.mark.filterwarnings("ignore:.*no images of 8 of 10")
def test_torchvision_sets_are_read_where_they_are(tmp_path: Path, block_network: None) -> None:
    write_mnist(tmp_path)
    splits = open_data("torchvision:MNIST", root=str(tmp_path))
    assert len(splits.classes) == 10
    assert splits.train is not None
    assert splits.train.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert splits.val is splits.test
    assert splits.train.read(0).size == (28, 28)
    assert_pickles(splits.train)
    held_out = open_data("torchvision:MNIST", root=str(tmp_path), val_fraction=0.34)
    assert [len(source) for _, source in held_out.items()] == [4, 2, 4]


def test_torchvision_sets_are_not_downloaded_unasked(tmp_path: Path, block_network: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"--data\.download true"):
        open_data("torchvision:CIFAR10", root=str(tmp_path))
    with pytest.raises(ValueError, match="did you mean CIFAR10"):
        open_data("torchvision:cifar-10", root=str(tmp_path))


def test_digits_are_the_real_ones(block_network: None) -> None:
    splits = open_data("digits")
    assert splits.train is not None
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (1438, 359)
    assert np.ptp(class_counts(splits.val)) <= 2
    image = splits.train.read(0)
    assert image.size == (32, 32)
    assert np.asarray(image).max() > 200
    assert_pickles(splits.train)


# Without labels


def test_images_for_prediction(class_tree, tmp_path: Path) -> None:
    root = class_tree({"a/b": 2, ".": 1})
    source = open_unlabelled(root)
    assert len(source) == 3
    assert source.classes == ()
    assert not source.has_label(0)
    assert len(open_unlabelled(root / "000.png")) == 1
    assert open_unlabelled([root / "a/b/001.png", root / "000.png"]).sample_id(1) == str(root / "000.png")
    with pytest.raises(FileNotFoundError, match="did you mean"):
        open_unlabelled([root / "00.png"])
    with pytest.raises(ValueError, match="empty"):
        open_unlabelled([])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no images"):
        open_unlabelled(tmp_path / "nothing")


# Splitting


def test_a_label_budget_keeps_shares_and_nests() -> None:
    targets = np.repeat([0, 1, 2, -1], [100, 50, 2, 5])
    sizes = {}
    for limit in (3, 10, 61, 152, 0.5, 1.0):
        chosen = stratified_limit(targets, limit, seed=3)
        sizes[limit] = np.bincount(targets[chosen]).tolist()
        assert len(set(chosen)) == len(chosen) == (limit if isinstance(limit, int) else round(limit * 152))
    assert sizes[10] == [6, 3, 1]
    assert sizes[0.5] == [50, 25, 1]
    assert set(stratified_limit(targets, 10, 3)) <= set(stratified_limit(targets, 61, 3))
    assert (
        stratified_limit(targets, 10.0, 3) == stratified_limit(targets, 10, 3)
    ).all()  # as a command line may read it
    for bad in (0, 153, 0.0, 1.5):
        with pytest.raises(ValueError, match=f"train_limit={bad}"):
            stratified_limit(targets, bad, seed=0)


def test_rows_of_one_file_are_held_out_together(class_tree) -> None:
    tree = class_tree({"a": 20, "b": 20})
    rows = [f"{p.relative_to(tree)},{p.parent.name}" for p in sorted(tree.rglob("*.png"))]
    (tree / "twice.csv").write_text("\n".join(["image,label", *rows, *rows]) + "\n")
    (tree / "once.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    twice, once = (open_data(str(tree / f"{name}.csv"), val_fraction=0.2) for name in ("twice", "once"))
    files = [{s.sample_id(i) for i in range(len(s))} for s in (twice.train, twice.val)]
    assert not files[0] & files[1]
    assert (len(twice.train), len(twice.val)) == (64, 16)
    assert files[1] == {once.val.sample_id(i) for i in range(len(once.val))}
    data = ClassifyData(str(tree / "twice.csv"), dev_fraction=0.2, train_limit=40, val_fraction=0.2)
    files = [{s.sample_id(i) for i in range(len(s))} for s in (data.train_source, data.val_source)]
    assert files[1]
    assert not files[0] & files[1]


def test_multi_label_data_are_split_without_strata() -> None:
    kept, held = stratified_split(np.ones((10, 3), dtype=np.float32), 0.3, seed=0)
    assert sorted([*kept, *held]) == list(range(10))
    assert len(held) == 3


def test_real_sets(real_data: Path) -> None:
    photographs = open_data(real_data / "imagenette")
    assert [len(source) for _, source in photographs.items()] == [2000, 500]
    assert "tench" in photographs.classes
    assert min(photographs.first.read(0).size) >= 160
    cifar = open_data(real_data / "cifar10" / "test.parquet")
    assert cifar.classes[:2] == ("airplane", "automobile")
    assert class_counts(cifar.first).tolist() == [800] * 10
    assert cifar.first.read(0).size == (32, 32)
