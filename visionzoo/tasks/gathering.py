"""What every rank has, on every rank."""

from __future__ import annotations

from typing import Any

import torch


def from_all_ranks(own: list[Any]) -> list[Any]:
    """What all ranks have, one after the other; call it on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    gathered: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, own)
    return [item for part in gathered for item in part]
