"""How much of this machine's processor is ours."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may run on, which a container or ``taskset`` makes fewer than there are; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed or 1
