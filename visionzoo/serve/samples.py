"""Pictures to begin with, where no folder was given: nuclei (CC0), digits and shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from visionzoo.data.sources.shapes import COLOURS, COMBINATIONS, KINDS, draw

SAMPLES = Path(__file__).parent / "samples"
#: What the embedded CLIP has learned to name.
SHAPE_LABELS = tuple(" ".join(pair) for pair in COMBINATIONS)
#: One of each combination of colour and shape.
_SHAPES, _DIGITS = len(COLOURS) * len(KINDS), 10


def write_samples(folder: str | Path) -> None:
    """Write the pictures into a folder: ``cells/*`` first, ``digits/*`` and ``shapes/*``."""
    target = Path(folder)
    for name in ("cells", "digits", "shapes"):
        (target / name).mkdir(parents=True, exist_ok=True)
    for path in sorted(SAMPLES.glob("nuclei-*.png")):
        (target / "cells" / path.name).write_bytes(path.read_bytes())
    for i in range(_SHAPES):
        drawing = draw(7, i, size=96)
        drawing.image.save(target / "shapes" / f"{'-'.join(drawing.objects[0])}.png")
    from sklearn.datasets import load_digits

    digits = load_digits()
    for k in range(_DIGITS):
        pixels = digits.images[int(np.flatnonzero(digits.target == k)[-1])]
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST)
        image.save(target / "digits" / f"{k}.png")
