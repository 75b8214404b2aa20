"""What a CLIP found for held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionzoo.viz.sheets import GREEN, RED, Line, contact_sheet


def retrieval_sheet(
    found: Sequence[tuple[np.ndarray, Sequence[tuple[str, bool]]]], out: str | Path, title: str = "Best captions"
) -> Path:
    """Draw images, each with the captions that a model found most similar.

    Args:
        found: (image, captions) for each: (H, W, C) uint8, and (caption, whether it is the image's own), best first.
        out: where the picture goes; the suffix chooses the format.
        title: above the sheet.
    """
    captions = [[Line(text, GREEN if own else RED) for text, own in rows] for _, rows in found]
    note = "of all held-out captions, best first; green: the image's own"
    return contact_sheet([image for image, _ in found], captions, out, title=title, note=note, tile=240, columns=4)
