"""Masks in colours over a picture, with the clicks and boxes that asked for them.

Legend: (H, W) pixels, K masks, P points.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from visionzoo.files import atomic_path
from visionzoo.viz.sheets import text_font

#: Share of a mask's colour in what it covers.
OPACITY = 0.5
#: Steps of this share of the colour circle keep neighbours apart, however many there are.
_GOLDEN = 0.61803398875
#: The longest edge of a picture with names, at least, in pixels.
LEAST_EDGE = 480
FOREGROUND, BACKGROUND, BOX = (60, 180, 75), (230, 50, 60), (255, 225, 25)


def mask_colour(index: int) -> tuple[int, int, int]:
    """A colour of 0..255 for mask ``index``, always the same."""
    r, g, b = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN) % 1, 0.75, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)


def paint_masks(image: np.ndarray, masks: Sequence[np.ndarray], opacity: float = OPACITY) -> np.ndarray:
    """A picture under its masks, each with its outline; large masks are painted first, so that small ones are seen.

    Args:
        image: (H, W, 3) uint8.
        masks: K of (H, W) bool.
        opacity: of the colours, in 0..1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: for a mask of another size than the picture.
    """
    painted = np.array(image, dtype=np.float32)
    for i, mask in enumerate(masks):
        if mask.shape != image.shape[:2]:
            raise ValueError(f"mask {i} has the size {mask.shape}, the picture {image.shape[:2]}")
    for i in sorted(range(len(masks)), key=lambda k: -int(np.count_nonzero(masks[k]))):
        rows, cols = (np.flatnonzero(masks[i].any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            continue
        window = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
        mask, colour = masks[i][window], np.array(mask_colour(i), dtype=np.float32)
        part = painted[window]
        part[mask] = (1 - opacity) * part[mask] + opacity * colour
        part[_outline(mask)] = colour
    return np.rint(painted).astype(np.uint8)


def draw_prompts(
    image: np.ndarray,
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
    boxes: Sequence[Sequence[float]] = (),
) -> np.ndarray:
    """Clicks as discs (green for the object, red for what is not part of it) and boxes: (H, W, 3) uint8 -> the same.

    Args:
        points: P of (x, y) in pixels.
        labels: 1 or 0 for each.
        boxes: of x0, y0, x1, y1.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    radius = max(2, round(max(picture.size) / 100))
    for box in boxes:
        pen.rectangle(tuple(box), outline=BOX, width=max(1, radius // 2))
    for (x, y), label in zip(points, labels, strict=True):
        colour = FOREGROUND if label == 1 else BACKGROUND
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white")
    return np.asarray(picture)


def mask_overlay(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    out: str | Path,
    *,
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
    boxes: Sequence[Sequence[float]] = (),
    names: Sequence[str] = (),
) -> Path:
    """Write :func:`paint_masks` of (H, W, 3) uint8 and (H, W) masks, with :func:`draw_prompts` on top, to ``out``,
    whose suffix chooses the format.

    With ``names``, one for each mask, a small picture is enlarged by a whole factor, so that they can be read.
    """
    painted = draw_prompts(paint_masks(image, masks), points, labels, boxes)
    picture = _with_names(painted, masks, names) if any(names) else Image.fromarray(painted)
    with atomic_path(out) as temporary:
        picture.save(temporary)
    return Path(out)


def _with_names(image: np.ndarray, masks: Sequence[np.ndarray], names: Sequence[str]) -> Image.Image:
    """Each name on its mask's colour, at the top of the mask."""
    times = max(1, -(-LEAST_EDGE // max(image.shape[:2])))
    picture = Image.fromarray(image.repeat(times, axis=0).repeat(times, axis=1))
    pen, font = ImageDraw.Draw(picture), text_font(max(13, round(max(picture.size) / 45)))
    for i, (mask, name) in enumerate(zip(masks, names, strict=True)):
        rows, cols = np.nonzero(mask)
        x, y = (int(cols.mean()) * times, int(rows.min()) * times) if len(rows) else (0, 0)
        text = name if len(rows) else f"{name}: nothing found"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        width, height = right - left + 6, bottom - top + 6
        x = max(0, min(x - width // 2, picture.width - width))
        y = max(0, min(y if len(rows) else i * height, picture.height - height))
        pen.rectangle((x, y, x + width, y + height), fill=mask_colour(i))
        pen.text((x + 3 - left, y + 3 - top), text, fill="black", font=font)
    return picture


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a neighbour, above, below, left or right, that is not in it; the frame counts as such."""
    framed = np.pad(mask, 1)
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inside
