"""Small photographs that can be told apart, and some that cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionzoo.auto.fit import fit
from visionzoo.runs import RunFolder

#: class -> where its picture is bright
BRIGHT = {"down": np.s_[8:], "left": np.s_[:, :8], "right": np.s_[:, 8:]}
#: class -> its colour there, so that random features tell them apart as well: what is learned in seconds varies
TINT = {"down": (160, 20, 20), "left": (20, 160, 20), "right": (20, 20, 160)}


def picture(name: str, rng: np.random.Generator) -> Image.Image:
    """16 x 16 pixels, noisy, in the colour and at the place of its class."""
    pixels = rng.integers(0, 90, (16, 16, 3)).astype(np.uint8)
    pixels[BRIGHT[name]] += np.array(TINT[name], np.uint8)
    return Image.fromarray(pixels)


def write_photos(folder: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """``{"train/left": 5}`` -> five pictures of ``left``."""
    rng = np.random.default_rng(seed)
    for path, count in counts.items():
        (folder / path).mkdir(parents=True)
        for i in range(count):
            picture(path.split("/")[-1], rng).save(folder / path / f"{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[dict[str, int]], Path]:
    """Writes a new folder of photographs."""
    made: list[Path] = []

    def write(counts: dict[str, int], seed: int = 0) -> Path:
        made.append(tmp_path / f"photos{len(made)}")
        return write_photos(made[-1], counts, seed=seed)

    return write


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    """(photographs, the run that a fit without weights made of them)."""
    base = tmp_path_factory.mktemp("fit")
    data = write_photos(base / "photos", {f"{s}/{c}": n for s, n in (("train", 40), ("val", 8)) for c in BRIGHT})
    return data, fit(data, minutes=0.25, weights="none", out=base / "run", device="cpu")
