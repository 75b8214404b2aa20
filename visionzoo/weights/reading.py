"""Read weights files without ever running code from them."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from visionzoo.limits import UNPACKED
from visionzoo.text import parse_json
from visionzoo.weights.unwrap import unwrap
from visionzoo.weights.writing import SCHEMA_VERSION

#: OpenAI published CLIP as TorchScript, which is code. The same weights as safetensors, by file name.
OPENAI_CLIP_ON_HUB = {
    "RN50": "timm/resnet50_clip.openai",
    "RN101": "timm/resnet101_clip.openai",
    "RN50x4": "timm/resnet50x4_clip.openai",
    "RN50x16": "timm/resnet50x16_clip.openai",
    "RN50x64": "timm/resnet50x64_clip.openai",
    "ViT-B-32": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B-16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L-14-336px": "timm/vit_large_patch14_clip_336.openai",
}
#: Bytes that an expanded tensor may stand for: a position index, not a layer.
_MOST_EXPANDED = 2**24
_PLAIN_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: What readers, those below and torch's own, raise for files that are damaged or something else.
DAMAGE: tuple[type[Exception], ...] = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What numpy scalars in a pickle need of ``_codecs.encode``, and no other codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} in a pickle; only latin1 is read")
    return text.encode("latin1")


class _Inert(dict):  # type: ignore[type-arg]
    """Stands in for dict-like settings objects of other libraries, so that they need not be imported."""


def _inert_classes() -> list[Any]:
    """Classes that training scripts put beside the weights and that cannot run code when they are rebuilt."""
    settings = (
        "pytorch_lightning.utilities.parsing",
        "lightning.pytorch.utilities.parsing",
        "lightning_fabric.utilities.data",
    )
    scalar = np.float64(0).__reduce__()[0]  # numpy's own function, which has moved between its versions
    return [
        argparse.Namespace,
        *(getattr(pathlib, n) for n in ("PurePosixPath", "PureWindowsPath", "PosixPath")),
        (pathlib.PurePosixPath, "pathlib._local.PosixPath"),
        *((_Inert, f"{module}.AttributeDict") for module in settings),
        np.dtype,
        *(type(np.dtype(n)) for n in ("float16", "float32", "float64", "int32", "int64", "bool")),
        *((scalar, f"{module}.multiarray.scalar") for module in ("numpy._core", "numpy.core")),
        (_latin1, "_codecs.encode"),
    ]


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the weights in a file, or in the shards that an index file names.

    The content decides, not the suffix: safetensors, torch files (zip or legacy, weights only) and numpy ``.npz``. What
    training scripts wrap around a state dict is taken off, see :func:`visionzoo.weights.unwrap.unwrap`.

    Args:
        path: a file, or ``*.index.json`` of a sharded hub folder.

    Returns:
        Keys to CPU tensors, and strings about the file: its header's metadata, and ``unwrapped`` where wrappers were
        taken off.

    Raises:
        FileNotFoundError: when ``path`` or one of its shards is not there.
        ValueError: when the file is empty, truncated, of another kind, holds no tensors, was written by a newer
            visionzoo, or would have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    raw, metadata = _read_index(path) if path.name.endswith(".index.json") else _read_raw(path)
    version = metadata.get("schema_version", "0")
    if version.isdecimal() and int(version) > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written by a newer visionzoo (schema_version {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade visionzoo"
        )
    try:
        state, steps = unwrap(raw)
    except ValueError as error:
        raise ValueError(f"{path} holds no weights: {error}") from None
    if unread := {k: f"{t.dtype}, {t.layout}" for k, t in state.items() if not _is_plain(t)}:
        raise ValueError(
            f"{path} holds tensors that are not plain numbers ({', '.join(sorted(set(unread.values())))}), such as "
            f"{next(iter(unread))}; convert them, with the scales that go with them, to float32, float16 or bfloat16"
        )
    return state, metadata | ({"unwrapped": " > ".join(steps)} if steps else {})


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is made of numbers that can be copied and compared: not float8, quantized, sparse or empty, nor
    a few numbers that say they are many."""
    known = tensor.dtype in _PLAIN_FLOATS or not tensor.dtype.is_floating_point
    if not known or tensor.is_quantized or tensor.is_meta or tensor.layout != torch.strided:
        return False
    size = tensor.numel() * tensor.itemsize
    return size <= max(tensor.untyped_storage().nbytes(), _MOST_EXPANDED)


def shard_names(index: Path) -> list[str]:
    """Names of the files that an index of a sharded checkpoint lists, all of which lie beside it.

    Raises:
        ValueError: for a damaged index, or one that points outside its own folder.
    """
    try:
        shards = sorted(set(parse_json(index.read_bytes(), str(index))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weight shards: {error!r}") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index} names a shard outside its own folder: {shard!r}; refused")
    return shards


def _read_index(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    state: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for shard in shard_names(path):
        if not (path.parent / shard).is_file():
            raise FileNotFoundError(
                f"{path} names the shard {shard!r}, which is not beside it; download the folder again"
            )
        part, metadata = _read_raw(path.parent / shard)
        state.update(part)
    return state, metadata


def _read_raw(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The outermost mapping in a file, by its content."""
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty (0 bytes); the download or the save was cut short")
    with path.open("rb") as file:
        head = file.read(64)
    reader: Callable[[Path], tuple[Any, dict[str, str]]]
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder")
    if head[:4] == b"PK\x03\x04":
        reader = _read_zip
    elif head[8:9] == b"{":
        reader = _read_safetensors
    elif head[:1] == b"\x80":
        reader = _read_torch
    else:
        raise ValueError(
            f"{path} is not a weights file ({size} bytes, starts with {head[:8]!r}); known: safetensors, torch, .npz"
        )
    try:
        raw, metadata = reader(path)
    except _Refused as error:
        raise ValueError(f"{path} was not loaded: {error}") from None
    except DAMAGE as error:
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to load it unsafely
            raise ValueError(
                f"{path} was not loaded: it is damaged, or a pickle of objects, which could run code when opened. "
                "If you trust its origin, load it where it came from and save model.state_dict() as safetensors"
            ) from error
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(
            f"{path} cannot be read; it is truncated, damaged or not a weights file ({size} bytes). "
            f"{type(error).__name__}: {first}"
        ) from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}, not a state dict; save model.state_dict() instead")
    return raw, metadata


class _Refused(Exception):
    """The file is whole, but reading it is unsafe."""


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safetensors.safe_open(path, framework="pt", device="cpu") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118, it is no dict


def unpacks_to_too_much(path: Path) -> str | None:
    """Why a compressed archive is not unpacked, in a line; None for one that may be, and for any other file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    size = path.stat().st_size
    why = UNPACKED.exceeded(unpacked - 4 * size)
    return why and f"{why} (beyond four times the {size:,} bytes of the file)"


def _read_zip(path: Path) -> tuple[Any, dict[str, str]]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if (why := unpacks_to_too_much(path)) is not None:
        raise _Refused(why)
    if names and all(n.endswith(".npy") for n in names):
        return _read_npz(path)
    # torch.save puts everything under one folder; TorchScript adds the code and constants of the program.
    if any(n.split("/", 1)[-1] == "constants.pkl" or n.split("/", 1)[-1].startswith("code/") for n in names):
        known = OPENAI_CLIP_ON_HUB.get(path.stem)
        advice = (
            f"hf-hub:{known}"
            if known
            else "for OpenAI's CLIP, hf-hub:timm/vit_base_patch32_clip_224.openai and its siblings"
        )
        raise _Refused(
            f"it is a TorchScript archive, a program that would run. Use the same weights as safetensors ({advice}), "
            "or convert it where you trust it: "
            "safetensors.torch.save_file(torch.jit.load(path).state_dict(), 'model.safetensors')"
        )
    return _read_torch(path)


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    state = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            array = file[key]
            if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how JAX's bfloat16 arrives in numpy
                state[key] = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
            else:
                state[key] = torch.from_numpy(np.ascontiguousarray(array))
    return state, {}


def _read_torch(path: Path) -> tuple[Any, dict[str, str]]:
    try:
        # An open file and not its name, since torch.load goes by a suffix of .safetensors.
        with path.open("rb") as file, torch.serialization.safe_globals(_inert_classes()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        # Its own wording, for globals, classes to be made and functions to be called that are not on its list.
        wanted = re.search(r"GLOBAL ([\w.]+)|but got (<.+?>)|function (\S+)", str(error))
        if wanted is None:
            raise
        name = next(g for g in wanted.groups() if g)
        raise _Refused(
            f"it is a pickle that wants {name!r}, and rebuilding that runs code. If you trust where it comes from, "
            "convert it once: load it there, then safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from None
