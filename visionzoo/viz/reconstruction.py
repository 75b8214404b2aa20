"""What a masked image model makes of images, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionzoo.viz.sheets import contact_sheet

COLUMNS = ("original", "masked", "reconstruction", "visible patches pasted")


def reconstruction_sheet(
    pictures: Sequence[np.ndarray],
    out: str | Path,
    *,
    note: str = "",
    title: str = "",
) -> Path:
    """Draw a row for each image: original, masked, reconstruction, and reconstruction with the visible patches pasted.

    Args:
        pictures: the four columns, each (B, H, W, C) uint8 in 0..255; of 2 or more than 3 channels the first is drawn.
        out: where the picture goes; the suffix chooses the format.
        note: a line under the title, for what has to be known about the colours.
        title: above the sheet.

    Raises:
        ValueError: for no images.
    """
    count = len(pictures[0])
    if not count:
        raise ValueError("there is no image to draw")
    tiles = [_colours(column[i]) for i in range(count) for column in pictures]
    captions = [(name,) for _ in range(count) for name in COLUMNS]
    return contact_sheet(tiles, captions, out, title=title, note=note, columns=len(COLUMNS), tile=224)


def _colours(image: np.ndarray) -> np.ndarray:
    return image if image.shape[2] in (1, 3) else image[:, :, :1]
