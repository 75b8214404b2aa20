"""Data that cannot be trusted: every reader gives a sample or the documented error, on whatever bytes."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import bad_images, encoded, hostile_folder, hostile_parquet, hostile_shard, odd_images, picture
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from visionzoo.data.images import UnreadableImage, open_image, open_values
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.rle import read_segmentation

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def readable(source: Source) -> dict[int, str]:
    """Reads everything; position -> reason of what cannot be read."""
    reasons = {}
    for i in range(len(source)):
        try:
            assert source.read(i).mode == "RGB"
        except UnreadableImage as error:
            reasons[i] = error.reason
    assert all(reason and "\n" not in reason for reason in reasons.values())
    return reasons


@pytest.mark.parametrize("name", odd_images())
def test_odd_images_are_read(name: str) -> None:
    assert open_image(odd_images()[name]).mode == "RGB"


@pytest.mark.parametrize("name", bad_images())
def test_bad_images_are_refused_with_the_reason(name: str) -> None:
    data, reason = bad_images()[name]
    with pytest.raises(UnreadableImage) as caught:
        open_image(data)
    assert reason in caught.value.reason


def test_a_folder(tmp_path: Path) -> None:
    made = hostile_folder(tmp_path / "set")
    source = open_data(str(made.root)).train
    assert source is not None
    assert len(source) == made.count
    reasons = {os.fsencode(os.path.relpath(str(source.raw(i)), made.root)): r for i, r in readable(source).items()}
    assert reasons.keys() == made.bad.keys()
    for name, word in made.bad.items():
        assert word in reasons[name], name
    for i in range(len(source)):
        source.sample_id(i).encode()  # can be written to a list, whatever its bytes


def test_parquet_rows(tmp_path: Path) -> None:
    bad = hostile_parquet(tmp_path / "set.parquet")
    source = open_data(str(tmp_path / "set.parquet"), val_fraction=0).train
    assert source is not None
    assert set(readable(source)) == bad


def test_shards(tmp_path: Path) -> None:
    bad = hostile_shard(tmp_path / "set.tar")
    source = open_data(str(tmp_path / "set.tar"), "captions", val_fraction=0, templates=()).named["train"]
    assert {source.sample_id(i).rpartition(":")[2] for i in readable(source)} == bad


# ---- mutations of valid files ---------------------------------------------------------------------------------------


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Bytes changed, runs of them removed, doubled or made the same, and the end cut off."""
    edits = draw(
        st.lists(st.tuples(st.sampled_from("=-+0"), st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)
    )
    end = draw(st.one_of(st.none(), st.floats(0, 1)))

    def mutate(data: bytes) -> bytes:
        found = bytearray(data)
        for kind, place, value in edits:
            at = int(place * len(found))
            if kind == "=" and found:
                found[at] = value
            elif kind == "-":
                del found[at : at + value]
            elif kind == "+":
                found[at:at] = found[at : at + value]
            elif kind == "0":
                found[at : at + value] = bytes(len(found[at : at + value]))
        return bytes(found if end is None else found[: int(end * len(found))])

    return mutate


def opened(open_it: Callable[[], Source | None]) -> None:
    """Opening gives a source whose samples are read or refused, or a ValueError; nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = open_it()
        except (ValueError, FileNotFoundError):
            return
        if source is not None:
            readable(source)
            objects = getattr(source, "objects", None)
            for i in range(len(source)):
                source.sample_id(i).encode()
                if objects is not None:
                    _touch_objects(objects, i)
                if hasattr(source, "captions"):
                    assert all(isinstance(text, str) for text in source.captions(i))


def _touch_objects(objects: Callable[[int], Any], i: int) -> None:
    try:
        found = objects(i)
    except UnreadableImage:
        return
    for k, area in enumerate(found.areas[:3]):
        assert found.mask(k).shape == found.size
        assert found.mask(k).sum() == area


def images_in(folder: Path, count: int = 4) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(encoded(picture(i), "PNG"))


@FUZZ
@given(mutate=mutations(), name=st.sampled_from(sorted(odd_images())))
def test_mutated_images(survived: Callable[..., None], mutate: Callable[[bytes], bytes], name: str) -> None:
    survived("damaged image (fuzzed): read or refused")
    data = mutate(odd_images()[name])
    for read in (open_image, open_values):
        with contextlib.suppress(UnreadableImage):
            read(data)


@FUZZ
@given(mutate=mutations(), ending=st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_mutated_manifests(
    survived: Callable[..., None], tmp_path: Path, mutate: Callable[[bytes], bytes], ending: str
) -> None:
    survived("damaged manifest (two readers) (fuzzed): read or refused")
    images_in(tmp_path)
    rows = [
        {"image": f"{i % 4}.png", "label": ["cat", "dog"][i % 2], "split": ["train", "val"][i // 4]} for i in range(8)
    ]
    if ending == ".jsonl":
        text = "\n".join(json.dumps(row) for row in rows)
    else:
        mark = "\t" if ending == ".tsv" else ","
        text = "\n".join([mark.join(rows[0]), *(mark.join(row.values()) for row in rows)])
    path = tmp_path / f"set{ending}"
    path.write_bytes(mutate(text.encode()))
    opened(lambda: open_data(str(path)).train)
    path.write_bytes(mutate(text.replace("label", "caption").encode()))
    opened(lambda: open_data(str(path), "captions", templates=()).named.get("train"))


@FUZZ
@given(mutate=mutations())
def test_mutated_parquet(survived: Callable[..., None], tmp_path: Path, mutate: Callable[[bytes], bytes]) -> None:
    survived("damaged parquet file (fuzzed): read or refused")
    path = tmp_path / "set.parquet"
    if not (tmp_path / "whole").exists():
        hostile_parquet(tmp_path / "whole", good=4)
    path.write_bytes(mutate((tmp_path / "whole").read_bytes()))
    opened(lambda: open_data(str(path)).train)


@FUZZ
@given(mutate=mutations())
def test_mutated_shards(survived: Callable[..., None], tmp_path: Path, mutate: Callable[[bytes], bytes]) -> None:
    survived("damaged tar shard (fuzzed): read or refused")
    path = tmp_path / "set.tar"
    if not (tmp_path / "whole").exists():
        hostile_shard(tmp_path / "whole", good=4)
    path.write_bytes(mutate((tmp_path / "whole").read_bytes()))
    opened(lambda: open_data(str(path), "captions", templates=()).named.get("train"))


@FUZZ
@given(mutate=mutations(), text=st.text(max_size=40))
def test_mutated_caption_files(
    survived: Callable[..., None], tmp_path: Path, mutate: Callable[[bytes], bytes], text: str
) -> None:
    survived("damaged caption file (fuzzed): read or refused")
    images_in(tmp_path / "set")
    (tmp_path / "set" / "0.txt").write_bytes(mutate(b"a red circle\nand a blue one\n\xef\xbb\xbf"))
    (tmp_path / "set" / "1.txt").write_text(text)
    (tmp_path / "set" / "2.txt").write_text("a plain caption")
    opened(lambda: open_data(str(tmp_path / "set"), "captions", val_fraction=0, templates=()).named.get("train"))


def coco_text() -> bytes:
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    counts = {"size": [24, 24], "counts": [30, 20, 526]}
    packed = {"size": [24, 24], "counts": "n0T1l?"}
    segmentations = [square, counts, packed, square]
    record = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 24} for i in range(4)],
        "annotations": [
            {"id": i, "image_id": i % 4, "category_id": 1 + i % 2, "iscrowd": 0, "segmentation": s}
            for i, s in enumerate(segmentations)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    return json.dumps(record).encode()


@FUZZ
@given(mutate=mutations())
def test_mutated_coco(survived: Callable[..., None], tmp_path: Path, mutate: Callable[[bytes], bytes]) -> None:
    survived("damaged COCO file (fuzzed): read or refused")
    images_in(tmp_path)
    path = tmp_path / "instances.json"
    path.write_bytes(mutate(coco_text()))
    opened(lambda: open_data(str(path), "objects", val_fraction=0).named.get("train"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@example(where="images", key="height", value=2**63)
@example(where="images", key="height", value=2**28)
@example(where="images", key="height", value=-1)
@example(where="images", key="width", value=float("nan"))
@given(
    where=st.sampled_from(["images", "annotations", "categories"]),
    key=st.sampled_from(["id", "file_name", "height", "width", "image_id", "category_id", "segmentation", "name"]),
    value=json_values,
)
def test_coco_with_values_of_other_types(
    survived: Callable[..., None], tmp_path: Path, where: str, key: str, value: Any
) -> None:
    survived("COCO file with a value of another type (fuzzed): read or refused")
    images_in(tmp_path)
    record = json.loads(coco_text())
    record[where][0][key] = value
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(record))
    opened(lambda: open_data(str(path), "objects", val_fraction=0).named.get("train"))


@FUZZ
@given(
    size=json_values, counts=json_values | st.lists(st.integers(-5, 600)) | st.text(max_size=30), plain=st.booleans()
)
def test_run_lengths_of_any_kind(survived: Callable[..., None], size: Any, counts: Any, plain: bool) -> None:
    survived("segmentation (fuzzed): read or refused")
    segmentation = counts if plain else {"size": [24, 24] if size is None else size, "counts": counts}
    try:
        runs = read_segmentation(segmentation, 24, 24)
    except UnreadableImage:
        return
    counts = runs.uncompressed()["counts"]
    assert sum(counts) == 24 * 24
    assert min(counts) >= 0


@FUZZ
@given(mutate=mutations())
def test_mutated_label_maps_and_sa_1b(
    survived: Callable[..., None], tmp_path: Path, mutate: Callable[[bytes], bytes]
) -> None:
    survived("damaged label map and SA-1B pair (fuzzed): read or refused")
    maps, pairs = tmp_path / "maps", tmp_path / "pairs"
    for folder in (maps / "images", maps / "masks", pairs):
        folder.mkdir(parents=True, exist_ok=True)
    images_in(maps / "images")
    images_in(pairs)
    value = encoded(picture(0, "L").point(lambda v: v // 64), "PNG")
    square = {
        "image": {"height": 24, "width": 24},
        "annotations": [{"segmentation": {"size": [24, 24], "counts": "n0T1l?"}}],
    }
    for i in range(4):
        (maps / "masks" / f"{i}.png").write_bytes(mutate(value) if i < 3 else value)
        (pairs / f"{i}.json").write_bytes(mutate(json.dumps(square).encode()))
    opened(lambda: open_data(str(maps), "objects", val_fraction=0).named.get("train"))
    opened(lambda: open_data(str(pairs), "objects", val_fraction=0).named.get("train"))


# ---- nothing is left behind -----------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_thousand_reads_leave_no_handle_and_no_memory(survived: Callable[..., None], tmp_path: Path) -> None:
    made = hostile_folder(tmp_path / "set", plain=8)
    hostile_parquet(tmp_path / "set.parquet", good=8)
    hostile_shard(tmp_path / "set.tar", good=8)
    sources = [
        open_data(str(made.root)).train,
        open_data(str(tmp_path / "set.parquet"), val_fraction=0).train,
        open_data(str(tmp_path / "set.tar"), "captions", val_fraction=0, templates=()).named["train"],
    ]
    memory, reads = [], 0
    handles = len(os.listdir("/proc/self/fd"))
    while reads < 10_000:
        for source in sources:
            assert source is not None
            readable(source)
            reads += len(source)
        memory.append(resident())
        assert len(os.listdir("/proc/self/fd")) == handles
    rounds = np.arange(len(memory) // 2)
    slope = np.polyfit(rounds, memory[-len(rounds) :], 1)[0]
    assert slope * len(rounds) < 8 * 2**20, (
        f"{slope / 2**10:.1f} KiB more after each round of {reads // len(memory)} reads"
    )
    survived("read of a hostile set: no handle left open, no memory kept", reads)
