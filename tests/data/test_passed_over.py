"""What a reader passes over is counted and named: pictures that PIL cannot read, and what shards hold."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionzoo.data import images
from visionzoo.data.check import check_data
from visionzoo.data.images import UnreadableImage, open_image
from visionzoo.data.sources.folder import open_unlabelled
from visionzoo.data.sources.open import open_data

Survived = Callable[..., None]
#: How a HEIC file begins.
HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PIL as it is where the extra ``heic`` is not installed."""
    images.image_extensions()  # PIL's tables must be full before they are cut: it fills them only once
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    for table in (Image.OPEN, Image.EXTENSION):
        for key, value in list(table.items()):
            if "HEIF" in (key, value):
                monkeypatch.delitem(table, key)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    images._load_heif.cache_clear()
    images.image_extensions.cache_clear()
    yield
    images._load_heif.cache_clear()
    images.image_extensions.cache_clear()


@pytest.mark.usefixtures("without_heif")
def test_pictures_that_are_not_read_are_counted_and_named(survived: Survived, class_tree) -> None:
    root = class_tree({"cat": 6, "dog": 6})
    for i in range(4):
        (root / "dog" / f"{i}.HEIC").write_bytes(HEAD)
    (root / "cat" / "a.nef").write_bytes(b"raw")
    (root / "cat" / "notes.txt").write_text("not a picture")
    message = r"5 of 17 pictures are not read, since PIL cannot: 4 \.heic, 1 \.nef; pip install 'visionzoo\[heic\]'"
    for read in (lambda: open_data(root), lambda: open_unlabelled(root)):
        with pytest.warns(UserWarning, match=message):
            read()
    report = check_data(root)
    assert any("5 of 17 pictures are not read" in text for text in report.warnings)
    assert "no problems found" not in report.to_text()
    with pytest.raises(UnreadableImage, match=r"HEIC, which PIL cannot read; pip install 'visionzoo\[heic\]'"):
        open_image(str(root / "dog" / "0.HEIC"))
    for file in (root / "dog").glob("*.png"):
        file.unlink()
    with (
        pytest.warns(UserWarning, match="are not read"),
        pytest.raises(ValueError, match=r"without images: 'dog' \(4 of 4 pictures are not read.*visionzoo\[heic\]"),
    ):
        open_data(root)
    survived("pictures that PIL cannot read (HEIC, raw): counted and named")


def test_heic_is_read_where_its_extra_is_installed(class_tree) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra heic")
    root = class_tree({"cat": 2, "dog": 2})
    colour = np.full((32, 48, 3), (200, 60, 30), np.uint8)
    heif.from_pillow(Image.fromarray(colour)).save(root / "dog" / "x.heic", quality=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_data(root, val_fraction=0.0).first
    assert len(source) == 5
    image = source.read(4)
    assert image.size == (48, 32)
    assert np.abs(np.asarray(image).astype(int) - colour).max() < 8
    with pytest.raises(UnreadableImage, match=r"a damaged HEIC file|Error"):
        open_image(HEAD)


def shard(path: Path, members: list[tuple[str, bytes | tarfile.TarInfo]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(data, bytes):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def special(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_what_a_shard_holds_twice_or_not_at_all_is_listed(
    survived: Survived, tmp_path: Path, encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    members: list[tuple[str, bytes | tarfile.TarInfo]] = []
    for i in range(3):
        members += [(f"{i}.png", encode(i)), (f"{i}.txt", f"number {i}".encode())]
    members += [("1.png", encode(9)), ("1.txt", b"another")]
    members += [("2.jpg", encode(10, "JPEG"))]
    members += [("link.png", special(tarfile.SYMTYPE)), ("device.png", special(tarfile.CHRTYPE))]
    members += [("pipe.txt", special(tarfile.FIFOTYPE)), ("deep.png", encode(4)), ("deep.json", b"[" * 10_000)]
    members += [("latin.png", encode(5)), ("latin.txt", "un café".encode("latin-1"))]
    members += [("folder", special(tarfile.DIRTYPE))]
    path = shard(tmp_path / "a.tar", members)
    for _ in range(2):  # the second time from the cache
        sets = open_data(str(path), "captions", val_fraction=0.0, templates=())
        source = sets.named["train"]
        captions = {source.sample_id(i).rpartition(":")[2]: source.captions(i) for i in range(len(source))}
        assert captions == {
            "0": ("number 0",), "1": ("number 1",), "2": ("number 2",), "deep": (), "latin": (),
        }  # fmt: skip
        assert source.raw(1) == encode(1), "the first of two counts"
        listed = {name.removeprefix(f"{path}:"): reason for name, reason in sets.problems}
        assert listed.keys() == {"1", "2", "link.png", "device.png", "pipe.txt", "deep", "latin"}
        assert "a second .txt, 1.txt" in listed["1"] or "a second image, 1.png" in listed["1"]
        assert len(sets.problems) == 8, "both of them are listed"
        assert "a second image, 2.jpg" in listed["2"]
        assert "a link" in listed["link.png"]
        assert "a device or pipe" in listed["device.png"]
        assert "nested too deeply" in listed["deep"]
        assert "not UTF-8" in listed["latin"]
    survived("tar member that is there twice, a link, a device, or unreadable text: listed", len(listed))
