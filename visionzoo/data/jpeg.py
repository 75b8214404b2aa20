"""Decode only as much of a JPEG as a crop needs, into memory that is used again.

A JPEG is a stream: no row can be had without those above it, but those below the crop need not be decoded. Undoing the
Huffman code is most of the work, so this saves about the share of the image that lies below the crop. The pixels are
those of a whole decoding, bit for bit: it is the same decoder, stopped early. Fresh memory for every image would cost
another tenth, since the system clears each page.
"""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np
from PIL import Image, JpegImagePlugin

_END_OF_IMAGE = b"\xff\xd9"
#: What PIL's decoder answers when it has delivered all rows asked for and is told to stop before the file's end.
_STOPPED_EARLY = (-1, -2)
#: Put into the last row beforehand, to see whether the decoder got there.
_UNTOUCHED = (1, 254, 3)
#: Edges of the kept memory grow in such steps; more pixels than the limit (64 MB) are not kept.
_STEP, _MOST_KEPT = 256, 2**24

#: RGB for PIL's own operations; RGBX (a fourth byte without meaning) for an array over the same memory.
Mode = Literal["RGB", "RGBX"]


class Canvas:
    """Memory that images are decoded into."""

    def __init__(self, mode: Mode, width: int, height: int) -> None:
        self.mode: Mode = mode
        #: (H, W, 4) uint8 over the image's memory, of mode RGBX.
        self.pixels: np.ndarray | None = None
        if mode == "RGB":
            self.image = Image.new("RGB", (width, height))
        else:
            self.pixels = np.zeros((height, width, 4), dtype=np.uint8)
            self.image = Image.frombuffer("RGBX", (width, height), self.pixels, "raw", "RGBX", 0, 1)


class _Kept(threading.local):
    """One canvas of each mode for a thread: no two threads write to the same."""

    def __init__(self) -> None:
        self.canvases: dict[str, Canvas] = {}

    def at_least(self, mode: Mode, width: int, height: int) -> Canvas:
        kept = self.canvases.get(mode)
        if kept is not None and kept.image.width >= width and kept.image.height >= height:
            return kept
        if kept is not None:
            width, height = max(width, kept.image.width), max(height, kept.image.height)
        # Not a power of two: rows that far apart would share the same few lines of the processor's cache.
        canvas = Canvas(mode, -(-width // _STEP) * _STEP + 16, -(-height // _STEP) * _STEP)
        if canvas.image.width * canvas.image.height <= _MOST_KEPT:
            self.canvases[mode] = canvas
        return canvas


_KEPT = _Kept()


def is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether :func:`top_rows` can read it: a whole baseline RGB JPEG. Anything else is for PIL's own ``load``.

    A file without its end is left to PIL too, which refuses it: a bad file should be found whatever the crop.
    """
    return (
        isinstance(image, JpegImagePlugin.JpegImageFile)
        and image.mode == "RGB"
        and not image.info.get("progressive")
        and data.endswith(_END_OF_IMAGE)
    )


def top_rows(image: Image.Image, data: bytes, rows: int, mode: Mode = "RGB") -> Canvas | None:
    """The first ``rows`` rows of a JPEG; None if they could not be had this way.

    Args:
        image: as ``Image.open`` gives it, not loaded. Its ``draft`` scale counts: rows are those of the scaled image.
        data: the whole file.
        rows: 1 to the image's height.
        mode: of the canvas.

    Returns:
        a canvas with the rows in its upper left corner; anything may be around them. It belongs to this thread, and
        the next call in it overwrites it.
    """
    width = image.width
    canvas = _KEPT.at_least(mode, width, rows)
    last = (0, rows - 1, width, rows)
    row = Image.new(mode, (width, 1), _UNTOUCHED)
    canvas.image.im.paste(row.im, last)
    decoder = Image._getdecoder(mode, "jpeg", (mode, ""), image.decoderconfig)  # type: ignore[attr-defined]
    decoder.setimage(canvas.image.im, (0, 0, width, rows))
    answer = decoder.decode(data)
    complete = answer == (-1, 0) if rows == image.height else answer == _STOPPED_EARLY
    if not complete or canvas.image.crop(last).tobytes() == row.tobytes():
        return None
    return canvas
