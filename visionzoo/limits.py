"""How much of a file from anywhere is taken into memory, at most, and how to raise it. Imports nothing from visionzoo.

A sparse file or a compressed archive can say much more than its sender paid for. What is larger than a limit is refused
before it is read; the message names the limit and the environment variable that raises it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Limit:
    """How many bytes, or what else, of something."""

    variable: str  #: the environment variable that changes it
    default: int
    what: str  #: that has so many
    unit: str = "bytes"

    @property
    def most(self) -> int:
        """The limit now.

        Raises:
            ValueError: where the variable is no size.
        """
        text = os.environ.get(self.variable)
        return self.default if text is None else parse_size(text, self.variable)

    def exceeded(self, size: int) -> str | None:
        """Why ``size`` is too much, in a line; None where it is not."""
        if size <= self.most:
            return None
        has, most = (in_units(n) if self.unit == "bytes" else f"{n:,} {self.unit}" for n in (size, self.most))
        return f"{self.what} has {has}, above the limit of {most}; {self.variable} raises it"


#: PIL refuses more than 179 million pixels; this is that many in RGB, uncompressed.
IMAGE_FILE = Limit("VISIONZOO_MAX_IMAGE_BYTES", 2**29, "the image file")
#: Weights hardly compress: what unpacks to more than four times the file and this is no model.
UNPACKED = Limit("VISIONZOO_MAX_UNPACKED_BYTES", 2**28, "what the archive unpacks to")

#: Of one object. The most in COCO are some 6,000; each takes memory whatever it draws.
CORNERS = Limit("VISIONZOO_MAX_POLYGON_CORNERS", 100_000, "a polygon", "corners")
#: cocoapi walks along outlines in fifths of a pixel, at some 100 bytes a pixel.
OUTLINE = Limit("VISIONZOO_MAX_POLYGON_PIXELS", 2_000_000, "the outline of a polygon", "pixels")


def parse_size(text: str, variable: str) -> int:
    """Bytes out of an environment variable: a number, perhaps with K, M or G.

    Raises:
        ValueError: for anything else, naming the variable.
    """
    unit = UNITS.get(text[-1:].upper())
    try:
        size = int(float(text[:-1] if unit else text) * (unit or 1))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{variable}={text!r} is no size; write bytes, or a number with K, M or G") from error
    if size <= 0:
        raise ValueError(f"{variable}={text!r} must be above 0")
    return size


def in_units(size: int) -> str:
    """A number of bytes for a person."""
    for name, unit in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:,} bytes"
