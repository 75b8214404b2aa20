"""The page of two runs: which is better, for which classes, and the pictures on which they disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from visionzoo.report.answers_part import PICTURE_BYTES, SHOWN, percent
from visionzoo.report.components import (
    FactList,
    ImagePool,
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
from visionzoo.report.shell import write_page
from visionzoo.runs.compare import RunComparison
from visionzoo.terminal import visible_name


def write_comparison(comparison: RunComparison, out: str | Path) -> Path:
    """Write the page, and give its path."""
    names = [run.path.name for run in comparison.runs]
    pool = ImagePool()
    paths = [(name, str(run.path)) for name, run in zip(("first", "second"), comparison.runs, strict=True)]
    sections = [
        PageSection("difference", "Difference", _difference(comparison)),
        PageSection("classes", "Classes", _classes(comparison, pool)),
        PageSection("pictures", "Where they disagree", _pictures(comparison)),
        PageSection("runs", "Runs", [FactList(paths)]),
    ]
    return write_page(out, f"{names[0]} against {names[1]}", sections, subtitle=said(comparison), pool=pool)


def said(comparison: RunComparison) -> str:
    """One line: the verdict, with its numbers."""
    seen = comparison.difference
    points = f"{100 * seen.value:+.1f} points ({100 * seen.low:+.1f} to {100 * seen.high:+.1f})"
    return f"{comparison.verdict()}: first less second {points}, McNemar's p = {seen.p:.2g}"


def _difference(comparison: RunComparison) -> list[Any]:
    right = comparison.right
    counts = [("both right", right.all(0)), ("only the first", right[0] & ~right[1])]
    counts += [("only the second", right[1] & ~right[0]), ("neither", (~right).all(0))]
    tiles = [Tile(name, percent(comparison.accuracy(run))) for run, name in enumerate(("first", "second"))]
    tiles += [Tile(name, f"{int(mask.sum()):,}", percent(float(mask.mean()))) for name, mask in counts]
    known = not np.isnan(comparison.kappa)
    agreement = f"; kappa of their mistakes is {comparison.kappa:.2f} (0 is chance)" if known else ""
    text = (
        f"{comparison.images:,} held-out images that both answered. They give the same answer for "
        f"{percent(comparison.same_answer)}{agreement}. One training of each was compared: what another seed would "
        "give is not known from it. McNemar's test is exact, the interval approximate: near 0 the test has the word."
    )
    return [Tiles(tiles), Paragraph(text)]


def _classes(comparison: RunComparison, pool: ImagePool) -> list[Any]:
    rows, left = [], PICTURE_BYTES // 2
    for place, one in enumerate(comparison.classes):
        shares = [right / one.images for right in one.right]
        mine = [i for i in _disagreeing(comparison) if comparison.label(i) == one.name]
        members = []
        for i in mine:
            picture = _picture(comparison, i)
            if picture is not None and len(picture) <= left:
                left -= len(picture)
                members.append(pool.add(_figure(comparison, i, picture)))
        key = f"class-{place}" if members else ""
        if members:
            title = f"{visible_name(one.name)}: one of them is right"
            pool.group(key, title, f"{len(members)} of {len(mine)} are shown", members)
        rows.append(
            (
                TableCell(visible_name(one.name)),
                TableCell(f"{one.images:,}", one.images),
                *(TableCell(percent(share), share) for share in shares),
                TableCell(f"{100 * (shares[0] - shares[1]):+.1f}", shares[0] - shares[1]),
                TableCell(f"{len(mine):,}", len(mine), key),
                TableCell(f"{one.p:.3f}", one.p),
            )
        )
    columns = [("class", False), ("images", True), ("first", True), ("second", True), ("points", True)]
    columns += [("disagree", True), ("p (Holm)", True)]
    caption = "Share of a class's images that each has right; p is McNemar's, after Holm among all classes."
    return [SortedTable("compared", caption, columns, rows, searched=len(rows) > 15)]


def _disagreeing(comparison: RunComparison) -> list[int]:
    return np.flatnonzero(comparison.right[0] != comparison.right[1]).tolist()


def _pictures(comparison: RunComparison) -> list[Any]:
    strips: list[Any] = []
    for run, title in enumerate(("Only the first is right", "Only the second is right")):
        places = comparison.only(run).tolist()
        shown = [(i, picture) for i in places if (picture := _picture(comparison, i)) is not None][:SHOWN]
        note = f"{len(places):,} images; {len(shown)} are shown, those first that the other is surest of."
        if shown:
            strips.append(Strip(title, note, [_figure(comparison, i, picture) for i, picture in shown]))
        elif places:
            strips.append(Paragraph(f"{title}: {len(places):,} images, of which no picture was kept.", "note"))
    return strips or [Paragraph("They are right and wrong on the same images.")]


def _picture(comparison: RunComparison, place: int) -> bytes | None:
    """That either run kept."""
    kept = (found.rows["picture"][comparison.rows[run, place]] for run, found in enumerate(comparison.found))
    return next((picture for picture in kept if picture is not None), None)


def _figure(comparison: RunComparison, place: int, picture: bytes) -> PictureFigure:
    lines = []
    for run, name in enumerate(("first", "second")):
        answer, sure = comparison.answer(run, place)
        tone = "right" if comparison.right[run, place] else "wrong"
        lines.append((f"{name}: {visible_name(answer)}, {percent(sure)}", tone))
    row = comparison.rows[0, place]
    sample = visible_name(comparison.found[0].rows["sample"][row])
    lines.append((f"label {visible_name(comparison.label(place))}", "quiet"))
    return PictureFigure(embedded(picture), f"{sample}: {lines[0][0]}; {lines[1][0]}", lines)
