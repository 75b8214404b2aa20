"""Pictures that a task has kept: those of the end, and those that were drawn while it learned."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from visionzoo.report.charts import Chart, ChartLine
from visionzoo.report.components import Beside, Frames, Paragraph, PictureFigure, Strip, embedded
from visionzoo.runs.gallery import Gallery, GalleryPicture, read_gallery, sheet_step
from visionzoo.terminal import visible_name

#: Sheets of a run that are shown, evenly spaced; the last one always.
FRAMES = 12
#: Bytes of the pictures of one part, before they become text.
PART_BYTES = 2_500_000
#: Width that a sheet of an earlier version is drawn with, in pixels.
SHEET_WIDTH = 900
_TONES = ("one", "two", "three", "quiet")


def gallery_parts(gallery: Gallery, name: str) -> list[Any]:
    """Strips of pictures, one for each group, and the curves that go with them."""
    about, left = gallery.about, PART_BYTES
    beside: list[Any] = [Paragraph(about.note)] if about.note else []
    if about.curves:
        dashed = len(about.curves) > len(_TONES)
        lines = [
            ChartLine(curve, points, _TONES[i % len(_TONES)], dashed and i >= len(_TONES))
            for i, (curve, points) in enumerate(about.curves)
        ]
        beside.insert(0, Chart(f"curves-{name}", about.curves_title, lines, x_name=about.curves_x))
    parts: list[Any] = [Beside(beside)] if beside else []
    for title, some in groupby(gallery.pictures, key=lambda picture: picture.group):
        figures = []
        for picture in some:
            left -= len(picture.picture)
            if left >= 0:
                figures.append(_figure(picture))
        if figures:
            parts.append(Strip(visible_name(title), "", figures, wide=about.wide))
    if left < 0:
        parts.append(Paragraph("More pictures were kept than a page can hold.", "note"))
    return parts


def sheet_parts(folder: Path) -> list[Any]:
    """What was drawn while it learned, as a picture that a slider moves through the steps."""
    files = sorted(folder.glob("step_*.parquet"))
    drawn = {file.stem for file in files}
    sheets = sorted(file for file in folder.glob("step_*.png") if file.stem not in drawn)
    if not files and sheets:
        return _old_sheets(sheets)
    frames: list[tuple[str, list[PictureFigure]]] = []
    left, note, wide = PART_BYTES, "", False
    for file in _spaced(files):
        gallery = read_gallery(file)
        note, wide = gallery.about.note or note, gallery.about.wide
        left -= sum(len(picture.picture) for picture in gallery.pictures)
        if left < 0 and frames:
            break
        frames.append((f"step {gallery.about.step:,}", [_figure(p) for p in gallery.pictures]))
    return [Frames("sheets", "While it learned", note, frames, wide)] if frames else []


def _old_sheets(sheets: Sequence[Path]) -> list[Any]:
    """The sheets of a run whose pictures were not kept one by one."""
    from PIL import Image

    frames = []
    for file in _spaced(sheets):
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((SHEET_WIDTH, 4 * SHEET_WIDTH))
        data = io.BytesIO()
        picture.save(data, "WEBP", quality=70)
        name = f"step {step:,}" if (step := sheet_step(file)) >= 0 else file.stem
        frames.append((name, [PictureFigure(embedded(data.getvalue()), f"sheet of {name}", [])]))
    return [Frames("sheets", "While it learned", "", frames, sheet=True)]


def _spaced(files: Sequence[Path]) -> list[Path]:
    count = min(FRAMES, len(files))
    return [files[round(i * (len(files) - 1) / max(1, count - 1))] for i in range(count)] if count > 1 else list(files)


def _figure(picture: GalleryPicture) -> PictureFigure:
    lines = [(visible_name(text), tone) for text, tone in picture.lines]
    place = picture.place if picture.place >= 0 else None
    return PictureFigure(embedded(picture.picture), visible_name(picture.alt), lines, place)
