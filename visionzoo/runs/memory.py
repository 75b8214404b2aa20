"""How much memory has been used, and how much there is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from visionzoo.limits import parse_size

#: Environment variable: bytes, or a number with K, M or G, that a run may use instead of what is free.
LIMIT_VARIABLE = "VISIONZOO_MEMORY_LIMIT"
CGROUPS = Path("/sys/fs/cgroup")


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process has held so far: allocated on a GPU, resident on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    # Linux has ru_maxrss too, which begins with the peak of the process that started this one
    if (peak := status_bytes("self", "VmHWM")) is not None:
        return peak
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes(pid: int) -> int:
    """What a process has in memory now; 0 for one that is gone, and where there is no ``/proc``."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def mapped_file_bytes(pid: int) -> int:
    """What a process has in memory of files, libraries above all. A forked process begins without any."""
    return status_bytes(pid, "RssFile") or 0


def status_bytes(pid: int | str, key: str) -> int | None:
    """A size in bytes from ``/proc/PID/status``; None where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def free_bytes(device: str = "cpu") -> int:
    """What can still be used: of a GPU, or of the main memory and this process's control group, whichever is less.

    :data:`LIMIT_VARIABLE` in the environment takes its place.

    Raises:
        ValueError: for a limit that is no size; OSError where the system does not say.
    """
    if given := os.environ.get(LIMIT_VARIABLE):
        return parse_size(given, LIMIT_VARIABLE)
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    if not Path("/proc/meminfo").is_file():
        raise OSError(f"this system does not say how much memory is free; set {LIMIT_VARIABLE}, such as 8G")
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([free, *_control_group_free()])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: of a GPU, of Python, or of torch's allocator on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _control_group_free() -> list[int]:
    """What is left of the limits of the control group that this process sees as its own, version 2 or 1."""
    places = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
    found = []
    for folder, limit, used in places:
        try:
            most = (CGROUPS / folder / limit).read_text().strip()
            now = int((CGROUPS / folder / used).read_text())
            stat = (CGROUPS / folder / "memory.stat").read_text().split()
        except OSError:
            continue
        if most.isdigit():
            # pages of files that nobody has read lately are given back before anything is refused
            cached = int(stat[stat.index("inactive_file") + 1]) if "inactive_file" in stat else 0
            found.append(max(0, int(most) - now + cached))
    return found
