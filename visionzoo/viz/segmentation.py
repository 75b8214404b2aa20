"""Objects, the clicks on them, and the masks that came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionzoo.viz.overlay import draw_prompts, paint_masks
from visionzoo.viz.sheets import contact_sheet


class SegmentRow(NamedTuple):
    """One object of one image."""

    image: np.ndarray  #: (H, W, 3) uint8
    truth: np.ndarray  #: (H, W) bool
    clicks: Sequence[np.ndarray]  #: K of (H, W) bool, the mask after each click
    ious: Sequence[float]  #: K, IoU after each click
    points: Sequence[Sequence[float]]  #: K of (x, y)
    labels: Sequence[int]  #: K, 1 or 0; below 0 where no click was needed
    box: Sequence[float]  #: x0, y0, x1, y1
    by_box: np.ndarray  #: (H, W) bool
    box_iou: float
    name: str = ""  #: what the object is called
    by_name: tuple[np.ndarray, float] | None = None  #: (H, W) bool and IoU, of a model that takes names as prompts


#: Edge of a picture on the sheet, in pixels. Smaller images are enlarged before clicks are drawn, or these hide them.
TILE = 256


def segmentation_sheet(rows: Sequence[SegmentRow], out: str | Path, *, title: str = "") -> Path:
    """Draw a row for each object: the truth with its name, the masks after one and three clicks, from a box, by name.

    The last column is there if a row has such a mask.

    Raises:
        ValueError: for fewer than three clicks.
    """
    if not rows:
        empty = np.full((64, 256, 3), 255, dtype=np.uint8)
        return contact_sheet([empty], [("these images have no objects",)], out, title=title, columns=1)
    if len(rows[0].clicks) < 3:
        raise ValueError(f"a sheet of masks needs at least three clicks, not {len(rows[0].clicks)}")
    by_name = any(row.by_name is not None for row in rows)
    tiles, captions = [], []
    for row in rows:
        for tile, caption in segmentation_tiles(row):
            tiles.append(tile)
            captions.append((caption,))
        if by_name and row.by_name is None:
            tiles.append(_enlarged(row).image)
            captions.append(("no name",))
    note = "green: click on the object, red: click on what is not part of it"
    return contact_sheet(tiles, captions, out, title=title, note=note, columns=5 if by_name else 4, tile=TILE)


def segmentation_tiles(row: SegmentRow) -> list[tuple[np.ndarray, str]]:
    """(H, W, 3) uint8 and what it is, of each: the truth, after one and three clicks, from a box, and by name."""
    row = _enlarged(row)
    tiles = [(paint_masks(row.image, [row.truth]), row.name or "truth")]
    for k in (1, 3):
        made = [(p, label) for p, label in zip(row.points[:k], row.labels[:k], strict=True) if label >= 0]
        picture = paint_masks(row.image, [row.clicks[k - 1]])
        picture = draw_prompts(picture, [p for p, _ in made], [label for _, label in made])
        tiles.append((picture, f"{k} click{'s' if k > 1 else ''}: IoU {row.ious[k - 1]:.2f}"))
    tiles.append((draw_prompts(paint_masks(row.image, [row.by_box]), boxes=[row.box]), f"box: IoU {row.box_iou:.2f}"))
    if row.by_name is not None:
        mask, iou = row.by_name
        tiles.append((paint_masks(row.image, [mask]), f"by name: IoU {iou:.2f}"))
    return tiles


def _enlarged(row: SegmentRow) -> SegmentRow:
    """A small image and all that lies on it, each pixel a square."""
    times = max(1, TILE // max(row.image.shape[:2]))
    if times == 1:
        return row

    def grow(x: np.ndarray) -> np.ndarray:
        return x.repeat(times, axis=0).repeat(times, axis=1)

    def move(places: Sequence[float]) -> list[float]:
        return [(p + 0.5) * times - 0.5 for p in places]

    return row._replace(
        image=grow(row.image),
        truth=grow(row.truth),
        clicks=[grow(mask) for mask in row.clicks],
        points=[move(point) for point in row.points],
        box=move(row.box),
        by_box=grow(row.by_box),
        by_name=None if row.by_name is None else (grow(row.by_name[0]), row.by_name[1]),
    )
