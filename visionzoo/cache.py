"""What can be computed again, kept between runs: one cache for all that is slow to make.

Each kind has a folder in the user's cache, and each entry one file there, whose name is a hash of everything that the
entry depends on; so nothing is ever out of date. A file appears whole or not at all, and carries a checksum; a damaged
one is removed and made again. Where nothing can be written, or no more may be, work goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionzoo.limits import Limit, in_units

if TYPE_CHECKING:
    from torch import Tensor

#: kind, which is the name of its folder -> what is kept there
KINDS = {
    "embeddings": "embeddings",
    "features": "features of probes",
    "search": "indices of folders",
    "shards": "indices of shards",
    "texts": "text embeddings",
}
LIMIT = Limit("VISIONZOO_CACHE_LIMIT", 50 * 2**30, "the cache")
#: Names of entries, and of the temporary files that killed processes leave.
_OURS = re.compile(r"\.?[0-9a-f]{32}(\.[0-9a-f]{12})?\.safetensors")
#: Seconds after which a temporary file has no writer any more.
_ABANDONED = 3600


def cache_folder(kind: str) -> Path:
    """``$XDG_CACHE_HOME/visionzoo/<kind>``, or the same below ``~/.cache``. The folder may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "visionzoo" / kind


class Cache:
    """Tensors by everything that they depend on. Threads and processes may share a folder.

    All folders of the user's cache together hold at most ``VISIONZOO_CACHE_LIMIT`` bytes, another folder as much by
    itself. What was used longest ago goes first, but nothing that was used since this object was made: data that are
    read in a circle and do not fit would else push each other out, and none would ever be found.

    Args:
        kind: one of :data:`KINDS`.
        folder: where the files are; None for the user's cache.
        of: part of every key, such as a model's :func:`visionzoo.weights.fingerprint.model_fingerprint`.

    Raises:
        ValueError: for a ``VISIONZOO_CACHE_LIMIT`` that is no size.
    """

    def __init__(self, kind: str, folder: str | Path | None = None, *, of: str = "") -> None:
        self.kind, self.of = kind, of
        self.folder = cache_folder(kind) if folder is None else Path(folder)
        self.hits = self.misses = 0
        self._most = LIMIT.most
        self._since = time.time() - 1  # file systems round
        self._room = 0  #: bytes that may be written before looking again at what is there
        self._stopped = False

    def read(self, *key: Any) -> dict[str, Tensor] | None:
        """What was written under ``key`` (strings, numbers, bytes, tensors, tuples of these); None where it is not."""
        file = self._file(key)
        found = None
        if os.path.isfile(file):
            try:
                found = _read(file)
                with contextlib.suppress(OSError):  # a folder that cannot be written is still read
                    os.utime(file)
            except FileNotFoundError:  # another process made room
                pass
            except OSError as error:
                warnings.warn(f"{file} cannot be read ({error}); what it holds is made again", stacklevel=2)
            except ValueError as error:
                warnings.warn(f"{file} is damaged ({error}) and is made again", stacklevel=2)
                with contextlib.suppress(OSError):
                    file.unlink()
        self.hits += found is not None
        self.misses += found is None
        return found

    def write(self, tensors: Mapping[str, Tensor], *key: Any) -> bool:
        """Keep ``tensors`` under ``key``. What prevents it is said once, and nothing more is kept by this object.

        Returns:
            whether they are kept.
        """
        from visionzoo.weights.writing import write_safetensors

        if self._stopped:
            return False
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        file, size = self._file(key), 1024 + sum(t.nbytes for t in tensors.values())  # with a header
        try:
            if size > self._room:
                self._make_room(size, file)
            write_safetensors(tensors, file, {"checksum": _checksum(tensors)})
            self._room -= size
        except OSError as error:
            self._stopped = True
            warnings.warn(f"no more {KINDS[self.kind]} are kept in {self.folder} ({error})", stacklevel=2)
            return False
        return True

    def _file(self, key: tuple[Any, ...]) -> Path:
        from visionzoo.weights.fingerprint import in_words

        name = hashlib.blake2b(in_words((self.of, key)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self.folder / f"{name}.safetensors"

    def _make_room(self, size: int, file: Path) -> None:
        """Remove what was used longest ago until a tenth is free, once ``size`` more bytes would be too much.

        Raises:
            OSError: if that would not be enough; nothing is removed then.
        """
        shared = [cache_folder(kind) for kind in KINDS] if self.folder == cache_folder(self.kind) else [self.folder]
        entries = [e for folder in shared for e in _entries(folder) if e.path != file]
        old = sorted((e for e in entries if e.used <= self._since), key=lambda e: e.used)
        held = size + sum(entry.size for entry in entries)
        if held - sum(entry.size for entry in old) > self._most:
            raise OSError(f"the limit of {in_units(self._most)} is reached; {LIMIT.variable} raises it")
        if held > self._most:
            for entry in old:
                entry.remove()
                held -= entry.size
                if held <= 0.9 * self._most:
                    break
        # looked at again after a while in any case: other processes write too
        self._room = size + min(self._most - held, self._most // 20)


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used: float  #: seconds since the epoch

    def remove(self) -> None:
        with contextlib.suppress(OSError):  # another process did, or reads it where that forbids it
            self.path.unlink()


def _entries(folder: Path, *, everything: bool = False) -> Iterator[_Entry]:
    """The files in a folder that are ours by their names; or all below it, where only we write."""
    for top, folders, names in os.walk(folder):
        if not everything:
            folders.clear()
            names = [name for name in names if _OURS.fullmatch(name)]
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(os.path.join(top, name))
                if not name.startswith(".") or status.st_mtime < time.time() - _ABANDONED:
                    yield _Entry(Path(top, name), status.st_size, status.st_mtime)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the user's cache holds of one kind."""

    kind: str
    folder: Path
    entries: int
    bytes: int
    last_used: float | None  #: seconds since the epoch; None where there is nothing


def held(kind: str) -> Held:
    """What the user's cache holds of a kind."""
    folder = cache_folder(kind)
    found = list(_entries(folder, everything=True))
    last = max((entry.used for entry in found), default=None)
    return Held(kind=kind, folder=folder, entries=len(found), bytes=sum(e.size for e in found), last_used=last)


def clear(kind: str) -> Held:
    """Remove what the user's cache holds of a kind, and say what was removed.

    Raises:
        OSError: for what cannot be removed.
    """
    before = held(kind)
    for entry in _entries(before.folder, everything=True):
        entry.path.unlink(missing_ok=True)
    return before


def packed(data: bytes) -> Tensor:
    """Bytes as a tensor, for what an entry holds beside numbers; ``.numpy().tobytes()`` is the way back."""
    import numpy as np
    import torch

    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    from visionzoo.weights.fingerprint import raw

    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(raw(tensor), zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total))
    return f"{total:08x}"


def _read(file: Path) -> dict[str, Tensor]:
    """Raises OSError or ValueError for a file that is not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:  # torch opens the file once more, by its name
        if not file.exists():
            raise FileNotFoundError(str(file)) from error
        raise OSError(str(error)) from error
    if metadata.get("checksum") != _checksum(tensors):
        raise ValueError("its checksum is another")
    return tensors
