"""What was drawn in a picture, as files: COCO's JSON, a label map, a cut-out.

Legend: (height, width) pixels of the picture.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from visionzoo.serve.annotations import DrawnObject, DrawnPicture, as_coco


def coco_file(picture: DrawnPicture) -> bytes:
    """COCO's instance JSON of one picture."""
    return json.dumps(as_coco([picture]), ensure_ascii=False).encode()


def label_map(objects: Sequence[DrawnObject], size: tuple[int, int]) -> bytes:
    """A PNG of (height, width): 0 for nothing, 1, 2, ... for the objects; a later one lies above an earlier one.

    Raises:
        ValueError: for more objects than a PNG has values.
    """
    if len(objects) >= 2**16:
        raise ValueError(f"{len(objects)} objects; a label map has at most 65,535")
    values = np.zeros(size, dtype=np.uint8 if len(objects) < 256 else np.uint16)
    for i, drawn in enumerate(objects, 1):
        values[drawn.runs.mask()] = i
    return _png(Image.fromarray(values))


def cut_out(image: Image.Image, objects: Sequence[DrawnObject]) -> bytes:
    """A PNG of what the objects cover, cropped to them; all else is transparent.

    Raises:
        ValueError: where they cover nothing.
    """
    covered = np.zeros((image.height, image.width), dtype=bool)
    for drawn in objects:
        covered |= drawn.runs.mask()
    if not covered.any():
        raise ValueError("nothing is selected; click on an object first")
    cut = image.convert("RGB")
    cut.putalpha(Image.fromarray(covered))
    return _png(cut.crop(Image.fromarray(covered).getbbox()))


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
