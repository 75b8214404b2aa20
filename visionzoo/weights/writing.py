"""Write weights so that a crash or a full disk leaves the earlier file as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from visionzoo.files import atomic_path

#: Version of what visionzoo writes; stored as ``schema_version`` in weights files, exported configs and checkpoints.
SCHEMA_VERSION = 1


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as safetensors asks."""
    seen: set[int] = set()
    result = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        start = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        if start in seen or not whole:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[key] = tensor
    return result


def write_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` to a safetensors file, atomically.

    Args:
        tensors: any dtypes and devices; tied tensors are stored once for each name.
        path: the file; an existing one is replaced only once the new one is whole on disk.
        metadata: strings stored in the header beside ``schema_version`` and ``format``.

    Raises:
        OSError: when it cannot be written, for instance on a full disk; an earlier file stays as it was.
    """
    header = {"format": "pt", "schema_version": str(SCHEMA_VERSION), **(metadata or {})}
    try:
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(_independent(tensors), temporary, metadata=header)
    except (SafetensorError, OSError) as error:  # safetensors has its own class for a failed write
        kept = "; the earlier file is unchanged" if Path(path).exists() else ""
        raise OSError(f"cannot write {path}: {error}{kept}") from error


def write_npz(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write ``tensors`` to a numpy ``.npz`` file, atomically; numpy has no bfloat16, so that becomes float32.

    Raises:
        OSError: as :func:`write_safetensors`.
    """
    arrays = {k: (v.float() if v.dtype == torch.bfloat16 else v).detach().cpu().numpy() for k, v in tensors.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
