"""Image sets as they are found in the wild: every way in which a file can be broken, or odd and still good."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

#: Pixels per edge of the good images, so that truncation has something to cut.
SIZE = 24


@dataclass
class HostileSet:
    """Class folders with good, odd and bad images."""

    root: Path
    good: list[bytes] = field(default_factory=list)  #: file names, below ``root``, that must be read
    bad: dict[bytes, str] = field(default_factory=dict)  #: file names -> a word of the reason

    @property
    def count(self) -> int:
        return len(self.good) + len(self.bad)


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def odd_images() -> dict[str, bytes]:
    """Files that have to be read: by name."""
    deep = Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 100)
    frames = [picture(i) for i in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "cmyk.jpg": encoded(picture(1, "CMYK"), "JPEG"),
        "deep.png": encoded(deep, "PNG"),
        "deep.tif": encoded(deep, "TIFF"),
        "film.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "film.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "turned.jpg": encoded(picture(2), "JPEG", exif=exif),
        "palette.png": encoded(picture(3).quantize(8), "PNG", transparency=b"\x00\xff" * 4),
        "alpha.png": encoded(picture(4, "RGBA"), "PNG"),
        "one-bit.png": encoded(picture(5, "1"), "PNG"),
        "is-a-png.jpg": encoded(picture(6), "PNG"),  # the wrong ending
        "trailing.jpg": encoded(picture(7), "JPEG") + b"and then some" * 9,
        "bad-exif.png": encoded(picture(8), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage"),
        "tiny.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "line.png": encoded(Image.new("RGB", (1, 900)), "PNG"),
    }


@cache
def bomb() -> bytes:
    """A PNG of 256 million black pixels in 32 kilobytes."""
    edge = 16_000

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + edge // 8) * edge), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@cache
def bad_images() -> dict[str, tuple[bytes, str]]:
    """Files that cannot be read: by name, with a word of the reason."""
    jpeg, png = encoded(picture(9), "JPEG"), encoded(picture(9), "PNG")
    found = {
        "empty.jpg": (b"", "zero bytes"),
        "text.jpg": (b"<html>404 not found</html>", "not an image"),
        "zeros.png": (bytes(500), "not an image"),
        "noise.jpg": (np.random.default_rng(0).bytes(500), "not an image"),
        "bomb.png": (bomb(), "bomb"),
        "no-pixels.png": (png[:16] + bytes(8) + png[24:], ""),  # says 0x0
    }
    # Every class of length: nothing but the first byte, inside the signature, the header, the tables, the data.
    for name, whole in (("jpg", jpeg), ("png", png)):
        lengths = (1, 2, 3, 8, 12, 20, 33, len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4)
        found |= {f"cut-{n}.{name}": (whole[:n], "") for n in lengths}
    return found


def hostile_folder(root: Path, plain: int = 60) -> HostileSet:
    """``root/train/{a,b}/...`` with all of them, ``plain`` ordinary images, and a clean ``root/val``."""
    made = HostileSet(root)
    for split, count in (("train", plain), ("val", 8)):
        for i in range(count):
            name = f"{split}/{'ab'[i % 2]}/{i:03d}.png"
            _write(root, name.encode(), encoded(picture(100 + i), "PNG"))
            if split == "train":
                made.good.append(name.encode())
    for i, (name, data) in enumerate(odd_images().items()):
        made.good.append(_write(root, f"train/{'ab'[i % 2]}/{name}".encode(), data))
    for i, (name, (data, reason)) in enumerate(bad_images().items()):
        made.bad[_write(root, f"train/{'ab'[i % 2]}/{name}".encode(), data)] = reason
    # A name that is not UTF-8 is a good name; links to themselves and to nothing are bad images; a link back up, a
    # pipe, and a folder that is called like an image must do no harm.
    made.good.append(_write(root, b"train/a/caf\xe9.png", encoded(picture(10), "PNG")))
    made.bad |= {b"train/a/loop.png": "symbolic links", b"train/a/gone.png": "no such file"}
    folder = os.fsencode(root)
    os.symlink(b"loop.png", os.path.join(folder, b"train/a/loop.png"))
    os.symlink(b"nowhere.png", os.path.join(folder, b"train/a/gone.png"))
    os.symlink(b"..", os.path.join(folder, b"train/b/up"))
    os.mkdir(os.path.join(folder, b"train/b/folder.png"))
    os.mkfifo(os.path.join(folder, b"train/b/pipe.png"))
    made.bad[b"train/b/pipe.png"] = "not a regular file"
    return made


def hostile_parquet(path: Path, good: int = 30) -> set[int]:
    """Rows with null cells, null and empty bytes, and bytes of every bad image; returns the numbers of the bad rows."""
    cells = [{"bytes": encoded(picture(i), "PNG"), "path": None} for i in range(good)]
    bad = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "gone.png"}]
    bad += [{"bytes": data, "path": None} for data, _ in bad_images().values()]
    table = {"image": [*cells, *bad], "label": ["ab"[i % 2] for i in range(good + len(bad))]}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.string())])
    pq.write_table(pa.table(table, schema=schema), path, row_group_size=16)
    return set(range(good, good + len(bad)))


def hostile_shard(path: Path, good: int = 30) -> set[str]:
    """A tar file whose members are all there, some of them broken, one header destroyed; returns bad keys."""
    bad = {name.replace(".", "-"): data for name, (data, _) in bad_images().items() if data}
    with tarfile.open(path, "w") as tar:
        for key, data in [*((f"{i:03d}", encoded(picture(i), "PNG")) for i in range(good)), *bad.items()]:
            for ending, content in (("png", data), ("txt", f"caption of {key}".encode())):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return set(bad)


def _write(root: Path, name: bytes, data: bytes) -> bytes:
    path = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return name
