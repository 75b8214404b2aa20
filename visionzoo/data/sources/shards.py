"""WebDataset shards, as img2dataset writes them: tar files of ``key.jpg``, ``key.txt`` and ``key.json``.

A shard is indexed once: where each image lies, and what its caption is. From then on its samples are read by position,
like the files of a folder, so shuffling, sharing among ranks and workers, and resuming are what they are everywhere.
Hence no rule about shards and workers is needed either: one shard serves any number of workers. (Streaming readers give
whole shards to workers; with fewer shards than workers some of them starve, or the run hangs.)

The index lies in the user's cache (:mod:`visionzoo.cache`), and is made again when the shard changes.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import BinaryIO

import numpy as np

from visionzoo.cache import Cache, packed
from visionzoo.data.images import ImageInput, UnreadableImage, check_size, image_extensions
from visionzoo.data.sources.base import NO_LABEL, PackedPaths, Source, Splits, printable
from visionzoo.data.sources.captions import CaptionSource, PackedTexts, clean_captions
from visionzoo.data.sources.paths import must_exist
from visionzoo.text import decode_text, parse_json

#: Part of the key of a cached index: counts up when what is indexed changes.
_INDEX_VERSION = 2
_BLOCK = tarfile.BLOCKSIZE
_JSON_CAPTIONS = ("caption", "captions", "text")


@dataclass
class ShardIndex:
    """What lies where in one shard; n samples."""

    keys: list[str] = field(default_factory=list)  #: n
    offsets: list[int] = field(default_factory=list)  #: n, first byte of each image
    sizes: list[int] = field(default_factory=list)  #: n, bytes of each image
    captions: list[list[str]] = field(default_factory=list)  #: n
    empty_captions: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)  #: (key or "", what is wrong)


class ShardSource(Source):
    """Images in tar files, by position."""

    def __init__(self, shards: Sequence[str], indices: Sequence[ShardIndex]) -> None:
        self.shards = tuple(shards)
        self._keys = PackedPaths([os.fsencode(key) for index in indices for key in index.keys])
        self._shard = np.repeat(np.arange(len(shards)), [len(index.keys) for index in indices])
        spans = [(a, n) for index in indices for a, n in zip(index.offsets, index.sizes, strict=True)]
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
        self.classes = ()
        self.targets = np.full(len(self._keys), NO_LABEL, dtype=np.int64)

    def sample_id(self, i: int) -> str:
        """The shard and the key in it."""
        return f"{printable(self.shards[self._shard[i]])}:{printable(self._keys[i])}"

    def raw(self, i: int) -> ImageInput:
        """The member's bytes. Raises UnreadableImage."""
        offset, size = (int(n) for n in self._spans[i])
        check_size(size)
        try:
            with open(self.shards[self._shard[i]], "rb") as file:
                data = _member(file, offset, size)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        if data is None:
            raise UnreadableImage("cut off: the shard ends inside this image")
        return data

    def stable_ids(self) -> Iterable[str]:
        """Shard and key of each sample."""
        for i in range(len(self)):
            yield f"{os.path.basename(printable(self.shards[self._shard[i]]))}:{printable(self._keys[i])}"


def is_remote(path: str) -> bool:
    """Whether a path is an address that is not on this machine's file system."""
    return "://" in path or path.startswith("pipe:")


def expand_braces(pattern: str) -> list[str]:
    """``{00000..00010}.tar`` as the shell has it: numbers with their leading zeros, or ``{a,b}``; several in a row."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    inside = found[1]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = numbers.groups()
        step = 1 if int(first) <= int(last) else -1
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        parts = [str(n).zfill(width) for n in range(int(first), int(last) + step, step)]
    elif "," in inside:
        parts = inside.split(",")
    else:
        raise ValueError(f"cannot expand {{{inside}}} in {pattern}; write {{00000..00010}} or {{a,b}}")
    tails = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + part + tail for part in parts for tail in tails]


def read_shards(shards: Sequence[str], *, caption_column: str | None = None) -> Splits[CaptionSource]:
    """Samples of tar files, all as ``train``.

    A sample is what has one name up to the first dot. Its caption is its ``.txt``, else the ``caption`` of its
    ``.json``. What cannot be read (a damaged header, the end of a shard that was cut off, a link, a second image of one
    name) is passed over and listed; an image that cannot be decoded is a bad sample like any other.

    Args:
        shards: paths.
        caption_column: take captions from this key of each ``.json`` instead.

    Raises:
        FileNotFoundError: for missing shards.
        ValueError: for a compressed shard, or if there is no image in any.
    """
    if missing := [shard for shard in shards if not os.path.exists(shard)]:
        if len(shards) == 1:
            must_exist(shards[0])
        raise FileNotFoundError(f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:5])}")
    cache = Cache("shards")
    indices = [index_shard(shard, caption_column, cache) for shard in shards]
    problems = tuple(
        (printable(f"{shard}:{key}" if key else shard), reason)
        for shard, index in zip(shards, indices, strict=True)
        for key, reason in index.problems
    )
    images = ShardSource(shards, indices)
    if not len(images):
        listed = "; ".join(f"{name}: {reason}" for name, reason in problems[:3]) or "no image members"
        raise ValueError(f"no images in {len(shards)} shards such as {shards[0]} ({listed})")
    texts = PackedTexts(captions for index in indices for captions in index.captions)
    return Splits(
        train=CaptionSource(images, texts),
        empty_captions=sum(index.empty_captions for index in indices),
        problems=problems,
    )


def index_shard(path: str, caption_column: str | None = None, cache: Cache | None = None) -> ShardIndex:
    """The index of a shard, from the cache if it was made before and the shard has not changed since.

    Raises:
        ValueError: for a compressed shard.
    """
    cache = cache or Cache("shards")
    status = os.stat(path)
    endings = sorted(image_extensions())  # a plugin of PIL brings more
    state = os.path.abspath(path), status.st_size, status.st_mtime_ns
    key = (_INDEX_VERSION, *state, caption_column, endings)
    if (kept := cache.read(*key)) is not None:
        index = ShardIndex(**json.loads(kept["index"].numpy().tobytes()))
        index.problems = [(name, reason) for name, reason in index.problems]
        return index
    index = _index(path, caption_column)
    cache.write({"index": packed(json.dumps(asdict(index)).encode())}, *key)
    return index


def _member(file: BinaryIO, offset: int, size: int) -> bytes | None:
    """The bytes of a member; None if the file ends inside it."""
    file.seek(offset)
    data = file.read(size)
    return data if len(data) == size else None


def _index(path: str, caption_column: str | None) -> ShardIndex:
    index = ShardIndex()
    endings = image_extensions()
    parts: dict[str, dict[str, tuple[int, int]]] = {}  # key -> ending -> (offset, size)
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError(f"{path} is compressed, and samples cannot be read by position; unpack it with gunzip")
        for name, offset, size in _members(file, index):
            folder, base = os.path.split(name)
            stem, _, ending = base.partition(".")
            kind = "." + ending.lower().rpartition(".")[2]
            kind = "image" if kind in endings else kind
            key = os.path.join(folder, stem)
            members = parts.setdefault(key, {})
            if kind in members:
                what = "a second image" if kind == "image" else f"a second {kind}"
                index.problems.append(
                    (key, f"{what}, {base}, under one key (the name up to the first dot) is not read")
                )
            members.setdefault(kind, (offset, size))
        for key, found in parts.items():
            if "image" not in found:
                index.problems.append((key, "no image beside " + ", ".join(sorted(found))))
                continue
            try:
                captions, dropped = _captions(file, found, caption_column, "its caption")
            except ValueError as error:
                captions, dropped = (), 0
                index.problems.append((key, str(error)))
            index.keys.append(key)
            index.offsets.append(found["image"][0])
            index.sizes.append(found["image"][1])
            index.captions.append(list(captions))
            index.empty_captions += dropped
    return index


def _members(file: BinaryIO, index: ShardIndex) -> Iterable[tuple[str, int, int]]:
    """(name, first byte, size) of each file in an archive; damage is written down in ``index`` and passed over."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    end = 0
    try:
        # With ignore_zeros a broken header is skipped, block by block, to the next one that is whole.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as archive:
            while (info := archive.next()) is not None:
                if _has_data(file, end, info.offset):
                    index.problems.append(("", f"damaged from byte {end} to {info.offset}; what lay there is lost"))
                if info.isreg() and not info.issparse():
                    yield info.name, info.offset_data, info.size
                elif not info.isdir():
                    what = "a link" if info.islnk() or info.issym() else "a sparse file" if info.issparse() else ""
                    index.problems.append((info.name, f"{what or 'a device or pipe'} is not read"))
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
    except (tarfile.TarError, ValueError) as error:
        if end <= size:
            index.problems.append(("", f"not readable as a tar file after byte {end}: {error}"))
    if end > size:
        index.problems.append(("", f"cut off at byte {size}: its last member ends at {end}"))
    elif end + _BLOCK > size:
        index.problems.append(("", f"cut off at byte {size}: the mark at the end of an archive is missing"))
    elif _has_data(file, end, size):
        index.problems.append(("", f"damaged after byte {end}; what lay there is lost"))


def _has_data(file: BinaryIO, start: int, stop: int) -> bool:
    """Whether there is anything but zeros (which end an archive) between two bytes. Looks at no more than 1 MiB."""
    if stop <= start:
        return False
    file.seek(start)
    return any(file.read(min(stop - start, 1 << 20)))


def _captions(
    file: BinaryIO, found: dict[str, tuple[int, int]], caption_column: str | None, where: str
) -> tuple[tuple[str, ...], int]:
    """The captions of a sample, and how many were empty. Raises ValueError for text or JSON that cannot be read."""
    if ".txt" in found and caption_column is None:
        data = _member(file, *found[".txt"]) or b""
        return clean_captions(decode_text(data, where)[0], where)
    if ".json" not in found:
        return (), 0
    record = parse_json(_member(file, *found[".json"]) or b"{}", where)
    record = record if isinstance(record, dict) else {}
    columns = _JSON_CAPTIONS if caption_column is None else (caption_column,)
    value = next((record[c] for c in columns if c in record), None)
    return clean_captions(value if isinstance(value, str | list) else None, where)
