"""``doctor.html``: the worst of each list as pictures, made of the report's components."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionzoo.curation.findings import LISTS, Finding, Findings, drift_text
from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.objects import ObjectSource, check_size
from visionzoo.report import write_page
from visionzoo.report.components import (
    PageSection,
    Paragraph,
    PictureFigure,
    SortedTable,
    Strip,
    TableCell,
    Tile,
    Tiles,
    embedded,
)
from visionzoo.terminal import visible_name
from visionzoo.viz.overlay import paint_masks

#: Pictures of a list, rows of a table, at most.
_SHOWN, _ROWS = 40, 1000
#: Edge of a picture in pixels, and bytes of all of them before they become text.
_EDGE, _BYTES = 180, 6_000_000
#: A mask of a smaller share of the picture than one in so many is shown from near.
_NEAR = 12
_NOTES = {
    "leak": "Scores on these mean little: leave out the one in the training split. Each stands left, its twin right.",
    "wrong label": "Out-of-sample probabilities of classifiers on frozen features, and confident learning. Look before "
    "you change anything: what is rare or hard is here too.",
    "twin": "Of two one can go. Each stands left, its twin right.",
    "caption": "More than half of the other images' captions fit better.",
    "weak caption": "A model that does not know such images well doubts good captions too: these stay in the data.",
    "far from its class": "Its neighbours have other labels, and it is far from the middle of its own class.",
}


def write_doctor_page(out: Path, found: Findings, splits: Splits[Any]) -> None:
    """Write the page.

    Args:
        out: the file.
        found: what it shows.
        splits: the data, for pictures.
    """
    left = [_BYTES]
    sections = [PageSection("overview", "Overview", _overview(found))]
    for number, (reason, title) in enumerate(LISTS.items()):
        listed = found.of(reason)
        if listed:
            parts = _list_parts(f"list-{number}", reason, listed, splits, left)
            sections.append(PageSection(f"list-{number}", title[:1].upper() + title[1:], parts))
    sections.append(PageSection("slices", "Where the model is weak", _slices(found)))
    sections.append(PageSection("next", "What to label next", _next(found)))
    if found.drift is not None:
        sections.append(PageSection("drift", "Drift", [Paragraph(drift_text(found.drift))]))
    title = f"Data doctor: {visible_name(Path(found.path).name or found.path)}"
    by = found.model or "its pixels alone"
    write_page(out, title, sections, subtitle=visible_name(f"{found.path}, looked at by {by}"))


def _overview(found: Findings) -> list[Any]:
    tiles = [Tile(f"images, {split}", f"{count:,}") for split, count in found.images.items()]
    if found.accuracy is not None:
        tiles.append(Tile("right, out of sample", f"{found.accuracy:.1%}", "of classifiers on frozen features"))
    for reason, title in LISTS.items():
        if listed := found.of(reason):
            tiles.append(Tile(title, f"{len(listed):,}"))
    parts: list[Any] = [Tiles(tiles)]
    parts += [Paragraph(visible_name(text), "warning") for text in found.said]
    if not found.findings:
        parts.append(Paragraph("Nothing was found."))
    return parts


def _list_parts(key: str, reason: str, listed: Sequence[Finding], splits: Splits[Any], left: list[int]) -> list[Any]:
    figures = []
    for one in listed[:_SHOWN]:
        if left[0] > 0 and (figure := _figure(one, splits)) is not None:
            figures.append(figure)
            left[0] -= len(figure.source) * 3 // 4
    parts: list[Any] = [Strip("", _NOTES.get(reason, ""), figures, wide=bool(listed[0].other))] if figures else []
    columns = [("image", False), ("split", False), ("label", False), ("why", False), ("suggestion", False)]
    rows = [
        [TableCell(visible_name(x)) for x in (one.image, one.split, one.label, one.text, one.suggestion)]
        for one in listed[:_ROWS]
    ]
    more = f"the first {_ROWS:,} of {len(listed):,}" if len(listed) > _ROWS else f"all {len(listed):,}"
    parts.append(SortedTable(key, f"As a table: {more}", columns, rows, searched=len(rows) > 15, folded=True))
    return parts


def _figure(one: Finding, splits: Splits[Any]) -> PictureFigure | None:
    try:
        pictures = [_picture(splits.named[one.split], one.place, one.part)]
        if one.other_place >= 0:
            pictures.append(_picture(splits.named[one.other_split], one.other_place))
    except UnreadableImage:
        return None
    sheet = Image.new(
        "RGB", (sum(p.width for p in pictures) + 6 * (len(pictures) - 1), max(p.height for p in pictures)), "white"
    )
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + 6
    data = io.BytesIO()
    sheet.save(data, "WEBP", quality=75)
    lines = [(f"label {one.label}", "wrong")] if one.label and one.suggestion else []
    if one.suggestion:
        lines.append((f"rather {one.suggestion}", "right"))
    lines += [(one.text, ""), (Path(one.image).name or one.image, "quiet")]
    return PictureFigure(embedded(data.getvalue()), visible_name(f"{one.image}: {one.text}"), _shown(lines), one.place)


def _shown(lines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(visible_name(text), tone) for text, tone in lines]


def _picture(source: Source, place: int, part: int = -1) -> Image.Image:
    """An image, small; of one with masks, the mask ``part`` in colour, from near where it is tiny."""
    if isinstance(source, ObjectSource) and part >= 0:
        picture, objects = source.pair(place)
        check_size(picture, objects)
        mask = objects.mask(part)
        image = Image.fromarray(paint_masks(np.asarray(picture.convert("RGB")), [mask]))
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            extent = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
            if extent < max(image.size) / _NEAR:
                x, y, edge = int(columns.mean()), int(rows.mean()), max(3 * extent, 16)
                image = image.crop((max(0, x - edge), max(0, y - edge), x + edge, y + edge))
    else:
        image = source.read(place).convert("RGB")
    if max(image.size) < _EDGE // 2:
        factor = _EDGE // max(image.size)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_EDGE, _EDGE))
    return image


def _slices(found: Findings) -> list[Any]:
    if not found.slices:
        return []
    weak = sum(part.weak for part in found.slices)
    rows = [
        [
            TableCell(visible_name(part.name)),
            TableCell(f"{part.images:,}", part.images),
            TableCell(f"{part.accuracy:.1%}", part.accuracy),
            TableCell(f"{part.rest:.1%}", part.rest),
            TableCell(f"{part.p:.2g}", part.p),
            TableCell("weak" if part.weak else "may be chance"),
        ]
        for part in found.slices
    ]
    columns = [("part", False), ("images", True), ("right", True), ("elsewhere", True), ("p", True), ("", False)]
    text = (
        f"{weak} of {len(rows)} parts are weak by more than chance: Fisher's exact test, the probabilities corrected "
        "for their number (Holm)."
    )
    return [Paragraph(text), SortedTable("slices", "Parts of the images, the surest weakness first", columns, rows)]


def _next(found: Findings) -> list[Any]:
    if not found.label_next:
        return []
    rows = [[TableCell(str(i + 1), i), TableCell(visible_name(n))] for i, n in enumerate(found.label_next[:_ROWS])]
    return [
        SortedTable("next", "The most telling first", [("", True), ("image", False)], rows, searched=len(rows) > 15)
    ]
