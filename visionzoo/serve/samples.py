"""Pictures to begin with, where no folder was given: nuclei (CC0), digits and shapes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from visionzoo.data.sources.shapes import COLOURS, COMBINATIONS, KINDS, draw

SAMPLES = Path(__file__).parent / "samples"
#: What the embedded CLIP has learned to name.
SHAPE_LABELS = tuple(" ".join(pair) for pair in COMBINATIONS)
#: One of each combination of colour and shape.
_SHAPES = len(COLOURS) * len(KINDS)


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
    with Image.open(SAMPLES / "digits.png") as row:  # side by side
        for k in range(row.width // row.height):
            digit = row.crop((k * row.height, 0, (k + 1) * row.height, row.height))
            digit.resize((128, 128), Image.Resampling.NEAREST).save(target / "digits" / f"{k}.png")
