"""What is kept between runs: found again, never wrong, bounded, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from visionzoo import cache as module
from visionzoo.cache import KINDS, Cache, cache_folder, clear, held, packed


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "visionzoo"


def tensors(seed: int = 0, numbers: int = 256) -> dict[str, Tensor]:
    values = torch.randn(numbers, generator=torch.Generator().manual_seed(seed))
    return {"values": values, "half": values[:3].bfloat16(), "none": torch.empty(0, 4), "text": packed(b"a\0b")}


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def age(file: Path, seconds: float) -> None:
    os.utime(file, (time.time() - seconds,) * 2)


def test_what_was_written_is_read_by_others() -> None:
    cache = Cache("features", of="a model")
    assert cache.read("key", 1) is None
    cache.write(tensors(), "key", 1)
    found = Cache("features", of="a model").read("key", 1)
    assert found is not None
    for name, tensor in tensors().items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype
    assert found["text"].numpy().tobytes() == b"a\0b"
    assert packed(b"").numel() == 0
    assert (cache.hits, cache.misses) == (0, 1)


def test_every_part_of_the_key_counts(own_cache: Path) -> None:
    keys: list[tuple[object, ...]] = [
        ("a",), (b"a",), ("a", 1), ("a", "1"), (("a", 1),), (Path("a"),), (Path("b"),), (torch.zeros(2),),
        (torch.zeros(2, 1),), (torch.zeros(2, dtype=torch.int32),), (torch.ones(2),), (),
    ]  # fmt: skip
    for i, key in enumerate(keys):
        Cache("texts").write({"i": torch.tensor(i)}, *key)
    Cache("texts", of="b").write({"i": torch.tensor(-1)}, "a")
    for i, key in enumerate(keys):
        found = Cache("texts").read(*key)
        assert found is not None
        assert int(found["i"]) == i, key
    assert len(files(own_cache / "texts")) == len(keys) + 1


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda _: b"", lambda _: b"words"], ids=["cut", "one bit", "empty", "text"]
)
def test_a_damaged_file_is_removed_and_made_again(damage: Callable[[bytes], bytes], own_cache: Path) -> None:
    cache = Cache("features")
    cache.write(tensors(), "key")
    (file,) = files(own_cache)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"{file.name} is damaged .* and is made again"):
        assert cache.read("key") is None
    assert not file.exists()
    cache.write(tensors(), "key")
    assert cache.read("key") is not None


def test_a_file_of_somebody_elses_is_not_taken_for_ours(own_cache: Path) -> None:
    """Whole as a file, but without the checksum: it may hold anything."""
    from visionzoo.weights import write_safetensors

    cache = Cache("features")
    cache.write(tensors(), "key")
    write_safetensors(tensors(1), files(own_cache)[0])
    with pytest.warns(UserWarning, match="checksum"):
        assert cache.read("key") is None


def test_the_longest_unused_goes_first(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONZOO_CACHE_LIMIT", "12K")
    names = [("features", 1), ("texts", 2), ("search", 3)]
    for kind, key in names:
        cache = Cache(kind)
        cache.write(tensors(key, 700), key)
        age(cache._file((key,)), 1000 - 100 * key)
    assert Cache("features").read(1) is not None  # the oldest is used
    age(Cache("features")._file((1,)), 10)
    Cache("shards").write(tensors(4, 700), 4)
    assert Cache("texts").read(2) is None, "the limit is for all kinds together"
    for kind, key in (("features", 1), ("search", 3), ("shards", 4)):
        assert Cache(kind).read(key) is not None, kind
    assert sum(f.stat().st_size for f in files(own_cache)) <= 12 * 2**10


def test_what_is_in_use_is_not_pushed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data in a circle that do not fit: what fits is found in every round, and the rest is not written in vain."""
    monkeypatch.setenv("VISIONZOO_CACHE_LIMIT", "10K")
    cache = Cache("embeddings")

    def once() -> None:
        for key in range(5):
            if cache.read(key) is None:
                cache.write(tensors(key, 700), key)

    with pytest.warns(UserWarning, match=r"no more embeddings .*limit of 10,240 .*VISIONZOO_CACHE_LIMIT") as caught:
        once()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once()
        once()
    assert len(caught) == 1
    assert cache.hits == 2 * 3


def test_what_is_larger_than_all_there_may_be_pushes_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONZOO_CACHE_LIMIT", "10K")
    first = Cache("embeddings")
    first.write(tensors(), 0)
    age(first._file((0,)), 1000)
    with pytest.warns(UserWarning, match="is reached"):
        Cache("embeddings").write(tensors(9, 5000), 9)
    assert Cache("embeddings").read(9) is None
    assert Cache("embeddings").read(0) is not None


def test_another_folder_has_its_own_limit_and_only_our_files_go(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONZOO_CACHE_LIMIT", "5K")
    Cache("features").write(tensors(0, 1000), 0)
    name, own = "0" * 32, tmp_path / "own"
    theirs = [own / "model.safetensors", own / f"{name}.jpg", own / "deep" / f"{name}.safetensors"]
    left = own / f".{name}.{'1' * 12}.safetensors"
    for file in (*theirs, left):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0" * 4000)
        age(file, 10**6)
    first = Cache("features", own)
    first.write(tensors(1, 700), 1)
    age(first._file((1,)), 1000)
    Cache("features", own).write(tensors(2, 700), 2)
    assert all(file.exists() for file in theirs)
    assert not left.exists(), "what a killed process left is the oldest"
    assert [first.read(key) is not None for key in (1, 2)] == [False, True]
    assert len(files(own_cache)) == 1


def test_a_limit_that_is_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONZOO_CACHE_LIMIT", "lots")
    with pytest.raises(ValueError, match="VISIONZOO_CACHE_LIMIT='lots' is no size"):
        Cache("features")


def refuse(number: int, words: str) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, words)

    return fail


@pytest.mark.parametrize(("number", "words"), [(28, "No space left on device"), (30, "Read-only file system")])
def test_where_nothing_can_be_written_it_is_said_once(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    Cache("features").write(tensors(), 0)
    cache = Cache("features")
    monkeypatch.setattr("safetensors.torch.save_file", refuse(number, words))
    monkeypatch.setattr(os, "utime", refuse(number, words))
    with pytest.warns(UserWarning, match=f"no more features of probes are kept in .*{words}") as caught:
        cache.write(tensors(), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.write(tensors(), 2)
    assert len(caught) == 1
    assert cache.read(0) is not None, "what is there is still read"
    assert len(files(own_cache)) == 1


def test_a_file_that_cannot_be_read_stays(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another user's, or the disk may answer again."""
    cache = Cache("features")
    cache.write(tensors(), 0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", refuse(13, "Permission denied"))
        with pytest.warns(UserWarning, match="cannot be read .*Permission denied"):
            assert cache.read(0) is None
    assert cache.read(0) is not None


def test_a_file_that_goes_while_it_is_read_is_only_missing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache("features")
    cache.write(tensors(), 0)
    monkeypatch.setattr(module, "_read", refuse(2, "No such file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.read(0) is None


PROCESS = """
import sys, warnings, torch
from visionzoo.cache import Cache
warnings.simplefilter("error")
for round in range(15):
    for key in range(12):
        cache = Cache("features")
        found = cache.read(key)
        assert found is None or torch.equal(found["x"], torch.full((400,), float(key))), key
        cache._since += 10  # what the other process uses may go too
        cache.write({"x": torch.full((400,), float(key))}, key)
"""


@pytest.mark.long
def test_processes_at_once_do_not_break_each_other(own_cache: Path) -> None:
    """They replace and remove each other's files, within a limit that holds less than all."""
    env = {**os.environ, "VISIONZOO_CACHE_LIMIT": "16K"}
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS], env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert files(own_cache)
    assert not [file for file in files(own_cache) if file.name.startswith(".")]


def test_listing_and_clearing(own_cache: Path) -> None:
    assert (held("texts").entries, held("texts").last_used) == (0, None)
    for key in range(3):
        Cache("texts").write(tensors(key), key)
    Cache("features").write(tensors(), 0)
    old = own_cache / "texts" / "of an earlier version" / "x.json"
    old.parent.mkdir()
    old.write_text("[]")
    writing = own_cache / "texts" / f".{'0' * 32}.{'1' * 12}.safetensors"
    writing.write_bytes(b"another process writes this")
    found = held("texts")
    assert (found.entries, found.folder) == (4, cache_folder("texts"))
    assert found.bytes == sum(f.stat().st_size for f in files(own_cache / "texts") if f != writing)
    assert found.last_used == pytest.approx(time.time(), abs=60)
    assert clear("texts") == found
    assert files(own_cache / "texts") == [writing]
    assert held("features").entries == 1
    assert {held(kind).kind for kind in KINDS} == set(KINDS)
