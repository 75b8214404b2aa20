"""Pictures of results with their captions, as a page shows them: Parquet files of a run folder, a row for each picture.

A task says what its pictures are; whoever draws a page of them knows nothing of tasks.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from visionzoo.plain import check_types
from visionzoo.runs.tables import read_table, write_table

#: What a line of a caption says of the picture.
TONES = ("", "right", "wrong", "quiet")
COLUMNS = {
    "group": "string",
    "alt": "string",
    "lines": "list<string>",
    "tones": "list<string>",
    "place": "int64",
    "picture": "binary",
}


class GalleryPicture(NamedTuple):
    """One picture."""

    group: str  #: pictures of one group stand together, under its name
    alt: str  #: what is on it, in words
    lines: Sequence[tuple[str, str]]  #: of the caption: text, and one of :data:`TONES`
    picture: bytes  #: WebP
    place: int = -1  #: position of the sample in its source, where it is of one


@dataclass(frozen=True, kw_only=True)
class GalleryAbout:
    """What all pictures have in common."""

    section: str  #: heading of the part of the page
    note: str = ""
    wide: bool = False  #: each is several pictures side by side
    step: int = -1  #: optimizer step that it was drawn at; -1 for the end
    curves_title: str = ""  #: of the curves below
    curves_x: str = ""  #: name of their x
    curves: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()  #: name and (x, y) of each


@dataclass(frozen=True)
class Gallery:
    """A file of pictures, read."""

    about: GalleryAbout
    pictures: Sequence[GalleryPicture]


def sheet_step(path: Path) -> int:
    """The optimizer step in the name of a sheet, ``step_0000500.png``; -1 for another name."""
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits != path.stem and digits.isdigit() else -1


def write_gallery(path: str | Path, pictures: Sequence[GalleryPicture], about: GalleryAbout) -> None:
    """Write pictures, atomically."""
    values: dict[str, Any] = {
        "group": [p.group for p in pictures],
        "alt": [p.alt for p in pictures],
        "lines": [[text for text, _ in p.lines] for p in pictures],
        "tones": [[tone for _, tone in p.lines] for p in pictures],
        "place": [p.place for p in pictures],
        "picture": [p.picture for p in pictures],
    }
    write_table(path, COLUMNS, values, asdict(about))


def read_gallery(path: str | Path) -> Gallery:
    """Read pictures, checked.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is damaged, or is not one of pictures.
    """
    values, told = read_table(path, COLUMNS)
    told.pop("schema_version")
    if odd := sorted(set(told) ^ {f.name for f in fields(GalleryAbout)}):
        raise ValueError(f"{path} has unknown keys or lacks some: {', '.join(odd)[:200]}")
    check_types(told, typing.get_type_hints(GalleryAbout), f"{path}: ")
    if any(value is None for column in values.values() for value in column):
        raise ValueError(f"{path} lacks values")
    pictures = []
    for group, alt, lines, tones, place, picture in zip(*(values[name] for name in COLUMNS), strict=True):
        if len(lines) != len(tones) or not set(tones) <= set(TONES):
            raise ValueError(f"{path} has a caption whose lines are of no known kind")
        pictures.append(GalleryPicture(group, alt, list(zip(lines, tones, strict=True)), picture, place))
    curves = tuple((name, tuple((x, y) for x, y in points)) for name, points in told.pop("curves"))
    return Gallery(GalleryAbout(**told, curves=curves), pictures)
