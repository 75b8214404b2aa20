"""A source that tells what the process that reads it has imported. Its own module, since spawned workers import it."""

from __future__ import annotations

import sys

import numpy as np

from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.base import Source

HEAVY = ("pytorch_lightning", "timm", "matplotlib", "sklearn", "transformers", "pyarrow", "torchvision", "pytest")


class TellingSource(Source):
    """Seven pictures of noise, and an eighth that cannot be read: its reason says which heavy packages are there."""

    def __init__(self) -> None:
        self.classes = ("a", "b")
        self.targets = np.arange(8) % 2
        self.multi_label = False

    def sample_id(self, i: int) -> str:
        return f"telling:{i}"

    def raw(self, i: int) -> np.ndarray:
        if i == 7:
            raise UnreadableImage(f"imported: {', '.join(n for n in HEAVY if n in sys.modules) or 'nothing heavy'}")
        return np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
