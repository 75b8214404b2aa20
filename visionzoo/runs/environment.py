"""What a report of a fault has to say of the machine and of what is installed."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import visionzoo
from visionzoo.cache import cache_folder
from visionzoo.plugins import installed_packages
from visionzoo.processors import usable_cores
from visionzoo.runs.memory import free_bytes
from visionzoo.runs.record import git_state

#: Features of processors that decide which kernels run, as Linux calls them.
FEATURES = (
    "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
CPU_INFO = Path("/proc/cpuinfo")  #: Linux only
#: Settings that change what runs, or how fast.
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")


def describe_environment() -> dict[str, Any]:
    """Versions, machine and what is installed, as plain JSON types. The user's home folder is written ``~``."""
    return {
        "visionzoo": visionzoo.__version__,
        "git": git_state(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "accelerators": _accelerators(),
        "packages": _packages(),
        "extensions": installed_packages(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "cache": _short(cache_folder("")),
    }


def _processor() -> dict[str, Any]:
    text = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    return {
        "name": name[1] if name else platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_allowed": usable_cores(),
        "threads": torch.get_num_threads(),
        "features": [feature for feature in FEATURES if feature in known],
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "free_memory_gib": round(free_bytes("cpu") / 2**30, 1),
    }


def _accelerators() -> dict[str, Any]:
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "gpus": [f"{d.name}, {d.total_memory / 2**30:.1f} GiB, capability {d.major}.{d.minor}" for d in devices],
        "mps": torch.backends.mps.is_available(),
    }


def _packages() -> dict[str, dict[str, str | None]]:
    """``needed`` and each extra -> package -> version, or None where it is not installed."""
    try:
        required = metadata.requires("visionzoo") or []
    except metadata.PackageNotFoundError:  # a copy that was never installed
        required = []
    found: dict[str, dict[str, str | None]] = {"needed": {}}
    for line in required:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"](\w+)", line)
        if name is not None and name[0] != "visionzoo":
            found.setdefault(extra[1] if extra else "needed", {})[name[0]] = _version(name[0])
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _short(path: Path) -> str:
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)
