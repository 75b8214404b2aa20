"""How much memory has been used."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process has held so far: allocated on a GPU, resident on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose ru_maxrss begins with the peak of the process that started this one
        words = next((line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if words is not None:
            return int(words[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
