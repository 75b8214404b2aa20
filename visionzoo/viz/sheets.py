"""Sheets of images with captions, drawn with PIL so that pixels stay pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visionzoo.files import atomic_path

_GAP, _LINE, _TEXT = 12, 17, 13
_INK, _GREY, RED, GREEN = "#1f2933", "#6a737d", "#b3261e", "#22733f"


class MistakeItem(NamedTuple):
    """One tile of a sheet of mistakes."""

    image: np.ndarray | Image.Image  #: (H, W, 3) or (H, W) uint8, or a PIL image
    true: str
    predicted: str
    confidence: float  #: probability of the predicted class, in [0, 1]


class Line(NamedTuple):
    """One line of a caption."""

    text: str
    colour: str = _INK


def contact_sheet(
    images: Sequence[np.ndarray | Image.Image],
    captions: Sequence[Sequence[Line | str]],
    out: str | Path,
    *,
    title: str = "",
    note: str = "",
    columns: int | None = None,
    tile: int = 176,
) -> Path:
    """Draw images in a grid, each with a caption of one or more lines, in reading order.

    An image keeps its aspect ratio inside a square of ``tile`` pixels; small images are enlarged by a whole factor
    without smoothing, so that a 16-pixel digit shows its pixels. Long lines end in an ellipsis.

    Args:
        images: (H, W, 3) or (H, W) uint8 arrays, or PIL images.
        captions: one sequence of lines for each image.
        out: where the picture goes; the suffix chooses the format.
        title: drawn above the grid.
        note: a smaller line under the title.
        columns: images in a row; None for a sheet a little wider than high.
        tile: edge of a tile in pixels.

    Raises:
        ValueError: for a different number of captions than images.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images need as many captions, not {len(captions)}")
    columns = columns or max(1, min(len(images), math.ceil(math.sqrt(1.6 * len(images)))))
    rows = math.ceil(len(images) / columns)
    lines = max((len(c) for c in captions), default=0)
    top = _GAP + (34 if title else 0) + (_LINE + 4 if note else 0)
    cell = tile + 6 + lines * _LINE + _GAP
    header = max(text_font(18).getlength(title), text_font(_TEXT).getlength(note))
    width = max(_GAP + columns * (tile + _GAP), int(header) + 2 * _GAP)
    sheet = Image.new("RGB", (width, top + rows * cell + _GAP // 2), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, _GAP), title, fill=_INK, font=text_font(18))
    if note:
        draw.text((_GAP, top - _LINE - 8), note, fill=_GREY, font=text_font(_TEXT))
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _GAP + i % columns * (tile + _GAP), top + i // columns * cell
        fitted = _fit(_as_pil(image), tile)
        draw.rectangle((x, y, x + tile - 1, y + tile - 1), fill="#f1f3f5")
        sheet.paste(fitted, (x + (tile - fitted.width) // 2, y + (tile - fitted.height) // 2))
        for n, line in enumerate(caption):
            text, colour = (line.text, line.colour) if isinstance(line, Line) else (line, _INK)
            draw.text((x, y + tile + 4 + n * _LINE), _cut(text, tile), fill=colour, font=text_font(_TEXT))
    with atomic_path(out) as temporary:
        sheet.save(temporary)
    return Path(out)


def mistakes_sheet(
    items: Sequence[MistakeItem | tuple[np.ndarray | Image.Image, str, str, float]],
    out: str | Path,
    title: str = "Most confident mistakes",
) -> Path:
    """Draw wrongly named images, PIL's or (H, W, C) uint8, each with its predicted class, the confidence, and its true
    class.

    With no mistakes the sheet says so, so that a run folder always holds the picture.
    """
    if not items:
        return contact_sheet([], [], out, title=f"{title}: none")
    rows = [MistakeItem(*item) for item in items]
    captions = [
        [
            Line(_one_line(r.predicted), RED),
            Line(_one_line(r.true), GREEN),
            Line(f"{100 * r.confidence:.1f} % sure", _GREY),
        ]
        for r in rows
    ]
    return contact_sheet([r.image for r in rows], captions, out, title=title, note="red: predicted, green: true class")


def _as_pil(image: np.ndarray | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(f"an image is (H, W, 3) or (H, W) uint8, not {pixels.shape} {pixels.dtype}")
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels).convert("RGB")


def _fit(image: Image.Image, tile: int) -> Image.Image:
    longest = max(image.size)
    if longest <= tile:
        factor = tile // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * tile / longest)), max(1, round(image.height * tile / longest)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _cut(text: str, width: int) -> str:
    font = text_font(_TEXT)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


@cache
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu at ``size`` pixels, which has Latin, Greek and Cyrillic."""
    # matplotlib brings DejaVu, which has Latin, Greek and Cyrillic; the font inside PIL has little beyond ASCII
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
