"""Randomness as a pure function of where a sample stands, so that no worker, order or restart can change it."""

from __future__ import annotations

import hashlib


def sample_key(*parts: int) -> int:
    """Hash integers such as (seed, epoch, index) to one in 0..2**63 - 1, the same on every machine."""
    packed = b"".join(part.to_bytes(16, "little", signed=True) for part in parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1
