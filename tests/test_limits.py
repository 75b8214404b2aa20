"""Files that say more than they are: refused before they are read, with the limit and how to raise it."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionzoo.data.images import UnreadableImage, image_facts, open_crop, open_image, open_region, open_values
from visionzoo.data.sources.shards import read_shards
from visionzoo.limits import IMAGE_FILE, UNPACKED, parse_size
from visionzoo.tasks.engine.checkpoint import AtomicCheckpointIO
from visionzoo.weights import read_state_dict

MANY = 2**32
WHOLE = (0, 0, 8, 8)
READERS: list[Callable[[str], object]] = [
    open_image,
    open_values,
    image_facts,
    lambda path: open_crop(path, lambda _: WHOLE),
    lambda path: open_region(path, lambda _: WHOLE, (8, 8)),
]


@pytest.mark.parametrize("start", [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\x00"])
@pytest.mark.parametrize("read", READERS)
def test_a_sparse_image(
    read: Callable[[str], object], start: bytes, tmp_path: Path, survived: Callable[..., None]
) -> None:
    path = tmp_path / "x.jpg"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(MANY)
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match=r"4\.0 GiB, above the limit of 512\.0 MiB; VISIONZOO_MAX_IMAGE_BYTES"):
        read(str(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**20
    survived("sparse image file of 4 GiB: refused before it is read")


def test_the_limit_of_images_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (9, 9)).save(path)
    monkeypatch.setenv(IMAGE_FILE.variable, "20")
    with pytest.raises(UnreadableImage, match="above the limit of 20 bytes"):
        open_image(path)
    with pytest.raises(UnreadableImage, match="above the limit of 20 bytes"):
        open_image(path.read_bytes())
    monkeypatch.setenv(IMAGE_FILE.variable, "1K")
    assert open_image(path).size == (9, 9)


def test_an_image_in_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        small = io.BytesIO()
        Image.new("RGB", (9, 9)).save(small, "PNG")
        for name, data in (("a.png", small.getvalue()), ("b.png", bytes(2000))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = read_shards([str(shard)]).named["train"].images
    monkeypatch.setenv(IMAGE_FILE.variable, "1000")
    assert source.read(0).size == (9, 9)
    with pytest.raises(UnreadableImage, match="above the limit of 1,000 bytes"):
        source.read(1)


def squeeze(path: Path, out: Path) -> None:
    """The same archive, compressed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


@pytest.fixture(params=["pth", "npz"])
def bomb(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """320 MiB of zeros in about 1 MB."""
    if request.param == "npz":
        np.savez_compressed(tmp_path / "w.npz", weight=np.zeros(80 * 2**20, np.float32))
        return tmp_path / "w.npz"
    torch.save({"weight": torch.zeros(80 * 2**20)}, tmp_path / "plain.pth")
    squeeze(tmp_path / "plain.pth", tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.long
def test_an_archive_that_unpacks_to_much_more(
    bomb: Path, monkeypatch: pytest.MonkeyPatch, survived: Callable[..., None]
) -> None:
    assert bomb.stat().st_size < 2**21
    with pytest.raises(ValueError, match=r"was not loaded: what the archive unpacks to .* VISIONZOO_MAX_UNPACKED"):
        read_state_dict(bomb)
    survived("compressed weights file that unpacks to 300 times its size: refused before it is unpacked")
    monkeypatch.setenv(UNPACKED.variable, "1G")
    assert read_state_dict(bomb)[0]["weight"].shape == (80 * 2**20,)


def test_a_compressed_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2**22)}}, tmp_path / "plain.ckpt")
    squeeze(tmp_path / "plain.ckpt", tmp_path / "last.ckpt")
    monkeypatch.setenv(UNPACKED.variable, "1M")
    with pytest.raises(ValueError, match="was not loaded: what the archive unpacks to"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")


def test_plain_and_compressed_weights_stay_readable(tmp_path: Path) -> None:
    state = {"a": torch.randn(64, 64), "b": torch.zeros(2**20)}
    torch.save(state, tmp_path / "plain.pth")
    squeeze(tmp_path / "plain.pth", tmp_path / "w.pth")
    np.savez_compressed(tmp_path / "w.npz", **{k: v.numpy() for k, v in state.items()})
    for name in ("plain.pth", "w.pth", "w.npz"):
        assert torch.equal(read_state_dict(tmp_path / name)[0]["a"], state["a"])


def test_a_number_that_says_it_is_a_billion(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**30), "b": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not plain numbers"):
        read_state_dict(tmp_path / "w.pth")
    torch.save({"a": torch.arange(77).expand(1, -1), "b": torch.zeros(1).expand(9)}, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth")[0]["b"].shape == (9,)


@pytest.mark.parametrize(("text", "size"), [("5", 5), ("1.5K", 1536), ("2g", 2**31)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "X") == size


@pytest.mark.parametrize("text", ["", "much", "G", "-1", "0", "nan", "inf"])
def test_what_is_no_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE_FILE.variable, text)
    with pytest.raises(ValueError, match=IMAGE_FILE.variable):
        IMAGE_FILE.exceeded(1)
