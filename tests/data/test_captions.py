"""Captioned images: what is read from where, which caption is drawn when, and what a batch holds."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from visionzoo.data.clip import ClipData
from visionzoo.data.sources import shards as shards_module
from visionzoo.data.sources.caption_readers import held_out_shapes
from visionzoo.data.sources.captions import PackedTexts
from visionzoo.data.sources.shapes import COLOURS, COMBINATIONS, KINDS, draw
from visionzoo.data.sources.shards import expand_braces, index_shard, read_shards
from visionzoo.types import CaptionBatch, ImageBatch, Preprocess

SPEC = Preprocess(image_size=(8, 8))
Encode = Callable[..., bytes]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indices of shards are cached in a folder of the test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def open_data(path: str | Path, **options: Any) -> ClipData:
    data = ClipData(str(path), **{"batch_size": 4, "num_workers": 0, **options})
    data.preprocess = SPEC
    data.setup("fit")
    return data


def epoch(data: ClipData, number: int = 0) -> list[CaptionBatch]:
    data.start = (number, 0)
    return list(data.train_dataloader())


def drawn(batches: list[CaptionBatch]) -> dict[int, str]:
    """The caption of each sample in an epoch."""
    return {int(i): text for batch in batches for i, text in zip(batch.index, batch.texts, strict=True)}


def write_images(folder: Path, names: list[str], encode: Encode) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(i))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def manifests(tmp_path: Path, encode: Encode) -> Path:
    """Twelve images to train on with 1 to 5 captions each, and three to evaluate."""
    root = tmp_path / "set"
    write_images(root, [f"images/{i}.png" for i in range(15)], encode)
    rows = [
        {"image": f"images/{i}.png", "captions": [f"image {i} caption {k}" for k in range(1 + i % 5)]}
        for i in range(15)
    ]
    write_jsonl(root / "train.jsonl", rows[:12])
    write_jsonl(root / "dev.jsonl", rows[12:])
    return root


# Manifests


def test_a_folder_of_manifests(manifests: Path) -> None:
    data = open_data(manifests)
    assert data.train_source is not None
    assert data.val_source is not None
    assert (len(data.train_source), len(data.val_source)) == (12, 3)
    assert data.train_source.captions(7) == ("image 7 caption 0", "image 7 caption 1", "image 7 caption 2")
    assert data.zero_shot_classes == ()
    (loader,) = data.val_dataloader()
    (batch,) = loader
    assert batch.images.shape == (3, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert len(batch.texts) == 3 + 4 + 5
    assert batch.text_image.tolist() == [0] * 3 + [1] * 4 + [2] * 5
    assert batch.texts[3] == "image 13 caption 0"


def test_one_caption_is_drawn_per_epoch(manifests: Path) -> None:
    data = open_data(manifests)
    epochs = [drawn(epoch(data, number)) for number in range(12)]
    assert epochs[3] == drawn(epoch(open_data(manifests), 3)), "a pure function of seed, epoch and sample"
    for i in range(12):
        seen = {one[i] for one in epochs}
        assert seen <= {f"image {i} caption {k}" for k in range(1 + i % 5)}
        assert len(seen) > 1 or i % 5 == 0
    assert drawn(epoch(open_data(manifests, seed=1))) != epochs[0]
    batch = epoch(data)[0]
    assert batch.text_image.tolist() == [0, 1, 2, 3]


def test_rows_of_one_image_are_several_captions(tmp_path: Path, encode: Encode) -> None:
    write_images(tmp_path, ["a.png", "b.png", "c.png"], encode)
    (tmp_path / "list.csv").write_text(
        "file,title,split\na.png,a cat | on a mat,train\nb.png,a dog,train\na.png,the cat,train\nc.png,an eel,val\n"
    )
    data = open_data(tmp_path / "list.csv")
    assert data.train_source is not None
    assert data.train_source.captions(0) == ("a cat | on a mat", "the cat")
    assert len(data.train_source) == 2
    assert data.val_source is not None
    assert data.val_source.captions(0) == ("an eel",)
    with pytest.raises(ValueError, match=r"has no column 'words'.*caption_column"):
        open_data(tmp_path / "list.csv", caption_column="words")
    (tmp_path / "odd.csv").write_text("name,words\na.png,a cat\nb.png,a dog\n")
    odd = open_data(tmp_path / "odd.csv", image_column="name", caption_column="words", val_fraction=0.0)
    assert odd.train_source is not None
    assert odd.train_source.captions(1) == ("a dog",)
    assert odd.val_dataloader() == []


def test_texts_that_are_empty_or_not_ascii(tmp_path: Path, encode: Encode) -> None:
    write_images(tmp_path, ["a.png", "b.png", "c.png", "d.png"], encode)
    write_jsonl(
        tmp_path / "train.jsonl",
        [
            {"image": "a.png", "captions": ["ein Hund läuft\n\tüber  Schnee", "", "犬が走る 🐕"]},
            {"image": "b.png", "captions": ["  \n"]},
            {"image": "c.png", "captions": None},
            {"image": "d.png", "captions": "one"},
        ],
    )
    data = open_data(tmp_path, val_fraction=0.0, batch_size=2)
    assert data.train_source is not None
    assert data.train_source.captions(0) == ("ein Hund läuft über Schnee", "犬が走る 🐕")
    assert data.empty_captions == 2
    batches = epoch(data)
    bad = {entry for batch in batches for entry in batch.bad}
    assert bad == {(data.train_source.sample_id(i), "no caption") for i in (1, 2)}
    assert {int(i) for batch in batches for i in batch.index} <= {0, 3}
    data.val_source = data.train_source
    (loader,) = data.val_dataloader()
    shapes = [(len(b.images), len(b.texts), b.text_image.tolist(), len(b.bad)) for b in loader]
    assert shapes == [(1, 2, [0, 0], 1), (1, 1, [0], 1)]


def test_data_without_any_caption_are_refused(tmp_path: Path, encode: Encode) -> None:
    write_images(tmp_path, ["a.png", "b.png"], encode)
    write_jsonl(tmp_path / "train.jsonl", [{"image": "a.png", "caption": ""}, {"image": "b.png", "caption": " "}])
    with pytest.raises(ValueError, match="none of the 2 images of train has a caption"):
        open_data(tmp_path, val_fraction=0.0)
    write_jsonl(tmp_path / "train.jsonl", [{"image": "a.png", "caption": 3}])
    with pytest.raises(ValueError, match=r"train.jsonl line 1: a caption is int 3"):
        open_data(tmp_path)


def test_a_batch_of_unreadable_images_is_empty(manifests: Path) -> None:
    for i in range(12, 15):
        (manifests / f"images/{i}.png").write_bytes(b"")
    (batch,) = open_data(manifests).val_dataloader()[0]
    assert batch.images.shape == (0, 3, 8, 8)
    assert batch.texts == ()
    assert batch.text_image.shape == batch.index.shape == (0,)
    assert [reason for _, reason in batch.bad] == ["empty: zero bytes"] * 3


def test_hold_out_budget_and_fingerprint(manifests: Path) -> None:
    one = open_data(manifests / "train.jsonl", val_fraction=0.25)
    assert one.train_source is not None
    assert one.val_source is not None
    assert (len(one.train_source), len(one.val_source)) == (9, 3)
    ids = [{s.sample_id(i) for i in range(len(s))} for s in (one.train_source, one.val_source)]
    assert not ids[0] & ids[1]
    assert one.fingerprint() == open_data(manifests / "train.jsonl", val_fraction=0.25).fingerprint()
    assert one.fingerprint() != open_data(manifests / "train.jsonl", val_fraction=0.25, seed=1).fingerprint()
    few = open_data(manifests, train_limit=5)
    assert few.train_source is not None
    assert len(few.train_source) == 5
    before = open_data(manifests).fingerprint()
    text = (manifests / "train.jsonl").read_text().replace("image 3 caption 2", "image 3 caption two")
    (manifests / "train.jsonl").write_text(text)
    assert open_data(manifests).fingerprint() != before, "other captions are other data"
    assert open_data(manifests / "train.jsonl", val_path=str(manifests / "dev.jsonl")).val_source is not None
    with pytest.raises(ValueError, match="train_limit=13"):
        open_data(manifests, train_limit=13)


# Text files and classes


def test_text_files_beside_images(tmp_path: Path, encode: Encode) -> None:
    write_images(tmp_path, [f"train/part{i % 2}/{i}.png" for i in range(6)] + ["val/7.png"], encode)
    for path in tmp_path.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"image {path.stem}\n\nsecond line {path.stem}\n")
    (tmp_path / "train/part0/0.txt").unlink()
    data = open_data(tmp_path)
    assert data.train_source is not None
    names = [Path(data.train_source.sample_id(i)).stem for i in range(6)]
    assert names == ["0", "2", "4", "1", "3", "5"]
    assert data.train_source.captions(0) == ()
    assert data.train_source.captions(1) == ("image 2", "second line 2")
    assert data.empty_captions == 6
    assert data.val_source is not None
    assert data.val_source.captions(0) == ("image 7", "second line 7")


def test_class_folders_through_templates(class_tree: Callable[..., Path]) -> None:
    root = class_tree({"train/golden_retriever": 6, "train/cat": 6, "val/golden_retriever": 2, "val/cat": 1})
    data = open_data(root, templates=["a photo of a {}.", "a drawing of a {}."])
    assert data.train_source is not None
    assert data.train_source.captions(11) == ("a photo of a golden retriever.", "a drawing of a golden retriever.")
    texts = {text for number in range(3) for text in drawn(epoch(data, number)).values()}
    assert len(texts) == 4
    captions, labelled = ([*loader] for loader in data.val_dataloader())
    assert captions[0].texts == (
        "a photo of a cat.",
        "a photo of a golden retriever.",
        "a photo of a golden retriever.",
    )
    assert isinstance(labelled[0], ImageBatch)
    assert labelled[0].labels.tolist() == [0, 1, 1]
    assert data.zero_shot_classes == ("cat", "golden retriever")
    assert len(open_data(root, zero_shot_path="none").val_dataloader()) == 1
    named = open_data(root, templates="imagenet").templates
    assert len(named) == 80
    assert named[0] == "a bad photo of a {}."
    assert open_data(root, templates="my {}").templates == ("my {}",)
    with pytest.raises(ValueError, match=r"template 'a photo' must have one \{\}"):
        open_data(root, templates=["a photo"])


def test_a_labelled_set_of_its_own_for_zero_shot(manifests: Path, class_tree: Callable[..., Path]) -> None:
    other = class_tree({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 2}, "labelled")
    data = open_data(manifests, zero_shot_path=str(other))
    assert data.zero_shot_classes == ("a", "b")
    labelled = [*data.val_dataloader()[1]]
    assert labelled[0].labels.tolist() == [0, 1, 1]
    alone = class_tree({"a": 4, "b": 3}, "alone")
    assert sum(len(b.images) for b in open_data(manifests, zero_shot_path=str(alone)).val_dataloader()[1]) == 7


# The built-in set


def test_shapes_and_their_captions_agree() -> None:
    data = open_data("shapes:96")
    assert data.train_source is not None
    assert len(data.train_source) == 96
    for i in (0, 17, 50):
        assert data.train_source.captions(i) == (draw(0, i).caption,)
        assert np.array_equal(np.asarray(data.train_source.read(i)), np.asarray(draw(0, i).image))
    assert len(data.zero_shot_classes) == 48
    with pytest.raises(ValueError, match="shapes:none: write shapes:N"):
        open_data("shapes:none")


def test_held_out_combinations_are_the_validation_images() -> None:
    data = open_data("shapes:200", holdout="red circle, blue star")
    assert data.train_source is not None
    assert data.val_source is not None
    trained = {data.train_source.captions(i)[0] for i in range(200)}
    assert trained == {f"{'an' if c[0] == 'o' else 'a'} {c} {k}" for c, k in COMBINATIONS} - {
        "a red circle",
        "a blue star",
    }
    assert {data.val_source.captions(i)[0] for i in range(500)} == {"a red circle", "a blue star"}
    batch = next(iter(data.val_dataloader()[1]))
    names = [data.zero_shot_classes[k] for k in batch.labels]
    assert [f"a {name}" for name in names] == [data.val_source.captions(int(i))[0] for i in batch.index]
    assert draw(0, 203, combinations=held_out_shapes("red circle, blue star")).caption == data.val_source.captions(3)[0]


def test_rules_of_the_hold_out() -> None:
    diagonal = held_out_shapes("diagonal")
    assert len(diagonal) == len(COLOURS)
    assert {kind for _, kind in diagonal} == set(KINDS)
    with pytest.raises(ValueError, match=r"holdout names \['red hexagon'\]"):
        held_out_shapes("red hexagon")
    with pytest.raises(ValueError, match="leaves nothing red"):
        held_out_shapes(", ".join(f"red {kind}" for kind in KINDS))
    with pytest.raises(ValueError, match="names no combination"):
        held_out_shapes(" ,")
    with pytest.raises(ValueError, match="built-in set shapes, not for digits"):
        open_data("digits", holdout="diagonal")


# Shards


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_shard(path: Path, start: int, count: int, encode: Encode) -> None:
    """A shard in img2dataset's order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i in range(start, start + count):
            key = f"{i:09d}"
            add(archive, f"{key}.jpg", encode(i, "JPEG"))
            add(archive, f"{key}.json", json.dumps({"caption": f"json {i}", "key": key}).encode())
            add(archive, f"{key}.txt", f"image {i}".encode())


def members_of(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return archive.getmembers()


@pytest.fixture
def shards(tmp_path: Path, encode: Encode) -> Path:
    folder = tmp_path / "shards"
    for s in range(3):
        write_shard(folder / f"{s:05d}.tar", 10 * s, 6, encode)
    return folder


def test_shards_are_read_by_position(shards: Path, encode: Encode) -> None:
    data = open_data(shards, val_fraction=0.0)
    assert data.train_source is not None
    assert len(data.train_source) == 18
    assert data.train_source.sample_id(7) == f"{shards}/00001.tar:000000011"
    assert data.train_source.captions(7) == ("image 11",)
    assert data.train_source.raw(7) == encode(11, "JPEG")
    braces = open_data(shards / "{00000..00002}.tar", val_fraction=0.0)
    assert braces.fingerprint() == data.fingerprint()
    assert data.problems == ()
    by_key = open_data(shards / "00002.tar", val_fraction=0.0, caption_column="caption")
    assert by_key.train_source is not None
    assert by_key.train_source.captions(0) == ("json 20",)


def test_one_shard_serves_many_workers(shards: Path) -> None:
    one = shards / "00000.tar"
    alone, two = (epoch(open_data(one, val_fraction=0.0, batch_size=2, num_workers=n)) for n in (0, 2))
    assert [b.texts for b in alone] == [b.texts for b in two]
    assert sorted(i for b in alone for i in b.index.tolist()) == list(range(6))


def test_webdatasets_own_writer(tmp_path: Path, encode: Encode) -> None:
    wds = pytest.importorskip("webdataset")
    for split, count in (("train", 5), ("val", 2)):
        (tmp_path / split).mkdir()
        with wds.TarWriter(str(tmp_path / split / "00000.tar")) as sink:
            for i in range(count):
                sink.write({"__key__": f"{i:09d}", "jpg": encode(i, "JPEG"), "txt": f"größe {i}", "json": {"a": 1}})
    data = open_data(tmp_path)
    assert data.train_source is not None
    assert data.val_source is not None
    assert [data.train_source.captions(i) for i in range(5)] == [(f"größe {i}",) for i in range(5)]
    assert len(data.val_source) == 2
    assert data.train_source.read(0).size == (12, 10)


def test_braces() -> None:
    assert expand_braces("a/{08..11}.tar") == ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]
    assert expand_braces("{x,y}-{0..1}.tar") == ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar"]
    with pytest.raises(ValueError, match=r"cannot expand {0-5}"):
        expand_braces("{0-5}.tar")


def test_the_index_is_cached_until_the_shard_changes(
    shards: Path, own_cache: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shards / "00000.tar"
    first = index_shard(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "_index", None)  # any indexing would fail
        assert index_shard(str(path)) == first
    (cached,) = own_cache.rglob("*.safetensors")
    cached.write_bytes(cached.read_bytes().replace(b"image 3", b"image 4"))
    with pytest.warns(UserWarning, match="is damaged"):
        assert index_shard(str(path)) == first
    write_shard(path, 0, 4, encode)
    assert len(index_shard(str(path)).keys) == 4


def test_a_cache_that_cannot_be_written_is_no_error_and_said_once(shards: Path, own_cache: Path) -> None:
    own_cache.write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="no more indices of shards are kept") as caught:
        sets = read_shards([str(shards / name) for name in ("00000.tar", "00001.tar")])
    assert len(sets.named["train"]) > 6
    assert len(caught) == 1


def test_a_broken_image_in_a_shard_is_a_bad_sample(tmp_path: Path, encode: Encode) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(5):
            add(archive, f"{i}.jpg", b"no picture" if i == 2 else encode(i, "JPEG"))
            if i != 3:
                add(archive, f"{i}.txt", b"words")
        add(archive, "9.json", b"{}")
    with pytest.warns(UserWarning, match="1 faults in the files"):
        data = open_data(tmp_path, val_fraction=1.0)
    assert data.problems == ((f"{tmp_path}/0.tar:9", "no image beside .json"),)
    bad = [entry for batch in data.val_dataloader()[0] for entry in batch.bad]
    assert bad == [
        (f"{tmp_path}/0.tar:2", "not an image: no decoder knows this file"),
        (f"{tmp_path}/0.tar:3", "no caption"),
    ]


def test_a_shard_that_was_cut_off(shards: Path) -> None:
    path = shards / "00001.tar"
    whole = path.read_bytes()
    members = members_of(path)
    middle = members[9].offset_data + 100  # inside the fourth image
    path.write_bytes(whole[:middle])
    with pytest.warns(UserWarning, match=r"00001.tar: cut off at byte"):
        data = open_data(shards, val_fraction=0.0)
    assert data.train_source is not None
    assert len(data.train_source) == 6 + 4 + 6
    assert data.train_source.captions(8) == ("image 12",)
    batches = epoch(data)
    assert {entry for b in batches for entry in b.bad} == {(f"{path}:000000013", "no caption")}
    path.write_bytes(whole[: members[9].offset])  # exactly between two members
    assert read_shards([str(path)]).problems[0][1].endswith("the mark at the end of an archive is missing")


def test_a_damaged_header_loses_one_member(shards: Path) -> None:
    path = shards / "00000.tar"
    data = bytearray(path.read_bytes())
    members = members_of(path)
    at = members[6].offset  # the header of the third image
    data[at + 10 : at + 300] = b"\xaa" * 290
    path.write_bytes(data)
    found = read_shards([str(path)])
    assert len(found.named["train"]) == 5
    assert [found.named["train"].captions(i)[0] for i in range(5)] == [f"image {i}" for i in (0, 1, 3, 4, 5)]
    assert any(f"damaged from byte {at}" in reason for _, reason in found.problems)


def test_an_image_cut_out_of_a_shard_after_it_was_indexed(shards: Path) -> None:
    data = open_data(shards / "00000.tar", val_fraction=1.0)
    path = shards / "00000.tar"
    path.write_bytes(path.read_bytes()[:600])
    reasons = {reason for batch in data.val_dataloader()[0] for _, reason in batch.bad}
    assert reasons == {"cut off: the shard ends inside this image"}
    path.unlink()
    assert {r for batch in data.val_dataloader()[0] for _, r in batch.bad} == {"No such file or directory"}


def test_shards_that_cannot_be_used_are_named(shards: Path, tmp_path: Path) -> None:
    for address in ("https://host/{0..1}.tar", "s3://bucket/0.tar", "pipe:cat 0.tar"):
        with pytest.raises(ValueError, match="remote shards are not read"):
            open_data(address)
    with pytest.raises(FileNotFoundError, match=r"2 of 5 shards are missing.*00003.tar"):
        open_data(shards / "{00000..00004}.tar")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*00000.tar"):
        open_data(shards / "00009.tar")
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        add(archive, "0.txt", b"text")
    with pytest.raises(ValueError, match=r"z\.tar is compressed"):
        open_data(tmp_path / "z.tar")
    (tmp_path / "html.tar").write_text("<html>" * 1000)
    with pytest.raises(ValueError, match="no images in 1 shards"):
        open_data(tmp_path / "html.tar")


# Resuming and workers


class Recorder(pl.LightningModule):
    """A model that writes down what it is given."""

    preprocess = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.steps: list[tuple[int, tuple[int, ...], tuple[str, ...], int]] = []
        self.validated: list[tuple[int, str]] = []

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        pixels = int(batch.images.long().sum())
        self.steps.append((self.current_epoch, tuple(batch.index.tolist()), tuple(batch.texts), pixels))
        return self.layer(batch.images.float().mean((2, 3))).pow(2).mean()

    def validation_step(self, batch: CaptionBatch | ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated.append((dataloader_idx, type(batch).__name__))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


class SaveAt(pl.Callback):
    """A checkpoint after so many steps."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def trainer(**options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", use_distributed_sampler=False, **{**quiet, "max_epochs": 2, **options})


@pytest.mark.parametrize("kind", ["manifests", "shards"])
def test_a_resumed_run_sees_exactly_what_was_left(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = request.getfixturevalue(kind)
    options = {"val_fraction": None if kind == "manifests" else 0.0}
    whole, resumed = Recorder(), Recorder()
    per_epoch = 3 if kind == "manifests" else 4
    middle = tmp_path / "middle.ckpt"
    trainer(callbacks=[SaveAt(per_epoch + 2, middle)]).fit(whole, open_data(root, **options))
    assert len(whole.steps) == 2 * per_epoch
    trainer().fit(resumed, open_data(root, num_workers=2, **options), ckpt_path=middle, weights_only=True)
    assert resumed.steps == whole.steps[per_epoch + 2 :]
    assert resumed.steps
    assert whole.steps[0][2] != whole.steps[per_epoch][2]


def test_two_loaders_reach_a_validation_step() -> None:
    model = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(limit_val_batches=1).validate(model, open_data("shapes:48"), verbose=False)
    assert model.validated == [(0, "CaptionBatch"), (1, "ImageBatch")]


@pytest.mark.long
def test_spawned_workers_give_the_same_batches(manifests: Path) -> None:
    alone = epoch(open_data(manifests))
    spawned = epoch(open_data(manifests, num_workers=1, worker_start_method="spawn"))
    for one, other in zip(alone, spawned, strict=True):
        assert one.texts == other.texts
        assert torch.equal(one.images, other.images)


@pytest.mark.long
def test_workers_import_nothing_heavy(run_offline: Callable[..., str]) -> None:
    heavy = ("pytorch_lightning", "timm", "matplotlib", "sklearn", "transformers", "pyarrow", "torchvision")
    code = f"import sys, visionzoo.data.clip_samples; print([m for m in {heavy} if m in sys.modules])"
    assert run_offline(code).strip() == "[]"


def test_packed_texts_keep_every_character() -> None:
    texts = [("a", "é"), (), ("日本", "", "b")]
    packed = PackedTexts(texts)
    assert [packed[i] for i in range(3)] == texts
    assert [packed.take(np.array([2, 0]))[i] for i in range(2)] == [texts[2], texts[0]]
    assert packed.digest() != PackedTexts([("a",), ("é",), ("日本", "", "b")]).digest()


def test_every_option_is_documented() -> None:
    import inspect

    text = ClipData.__init__.__doc__ or ""
    for name in set(inspect.signature(ClipData).parameters) - {"kwargs"}:
        assert f"\n            {name}: " in text, name


def test_real_captions(real_data: Path) -> None:
    data = open_data(real_data / "flickr8k")
    assert data.train_source is not None
    assert data.val_source is not None
    assert (len(data.train_source), len(data.val_source)) == (6000, 1000)
    assert {len(data.train_source.captions(i)) for i in range(6000)} == {5}
    batch = next(iter(data.val_dataloader()[0]))
    assert (len(batch.images), len(batch.texts), batch.bad) == (4, 20, ())
