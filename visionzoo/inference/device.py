"""Where a model runs, as a user names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to use: as asked for; None for a GPU where there is one, otherwise the CPU.

    Raises:
        ValueError: for a name that torch does not know, or a device that this machine lacks.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is none that torch knows; use cpu, cuda, cuda:1 or mps") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r}: this machine has {torch.cuda.device_count()} CUDA devices; use device='cpu'"
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}: this machine has no Apple GPU; use device='cpu'")
    return resolved


def as_input(images: Tensor, model: nn.Module) -> Tensor:
    """Normalised images (B, C, H, W) in the precision of a model's weights, so that one in half or double takes them
    as well."""
    return images.to(_precision(model))


@contextmanager
def own_precision(model: nn.Module) -> Iterator[None]:
    """Run a model that was brought to half, bfloat16 or double in that, also inside autocast, which is for float32."""
    where = next(model.parameters()).device.type
    with torch.autocast(where, enabled=torch.is_autocast_enabled(where) and _precision(model) == torch.float32):
        yield


def _precision(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
