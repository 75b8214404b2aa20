"""How much memory has been used."""

from __future__ import annotations

import sys

import torch


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process has held so far: allocated on a GPU, resident on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
