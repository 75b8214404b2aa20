"""Tiny data sets for the tests of the data layer."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


def pixels(seed: int, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    """(H, W, 3) uint8 noise; ``size`` is (width, height)."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, size)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def encode() -> Encode:
    """``encode(seed, kind="PNG", size=(12, 10))``: the bytes of a small image file of noise."""
    return encoded


@pytest.fixture
def class_tree(tmp_path: Path) -> Callable[..., Path]:
    """``class_tree({"train/cat": 3, ...})``: a folder with that many different PNG files in each subfolder."""

    def make(counts: dict[str, int], name: str = "set", seed: int = 0) -> Path:
        root = tmp_path / name
        for k, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (root / folder / f"{i:03d}.png").write_bytes(encoded(1000 * seed + 100 * k + i))
        return root

    return make


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped without it."""
    folder = Path(os.environ.get("VISIONZOO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; VISIONZOO_TEST_DATA names another folder")
    return folder
