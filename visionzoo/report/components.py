"""What pages are made of. A component is data; ``page/components.html`` says how each looks.

Texts are plain text of anybody's: they are escaped where they are drawn, and what turns the reading direction or is no
character is written out.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Tile:
    """A number that is looked at first."""

    name: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Tiles:
    """Numbers side by side."""

    tiles: Sequence[Tile]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: str
    tone: str = ""  #: ``note`` for what is said by the way, ``warning``
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class FactList:
    """Names and what they are."""

    rows: Sequence[tuple[str, str]]
    code: frozenset[str] = frozenset()  #: names whose text is for a machine
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Listing:
    """A file, folded."""

    name: str
    text: str
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class TableCell:
    """One value of a table."""

    text: str
    order: float | str | None = None  #: what it is sorted by; None for the text
    opens: str = ""  #: key of the images that it opens, see :class:`ImagePool`


@dataclass(frozen=True)
class SortedTable:
    """Rows that are sorted by any column, and searched where there are many."""

    id: str
    caption: str
    columns: Sequence[tuple[str, bool]]  #: name, and whether it holds numbers
    rows: Sequence[Sequence[TableCell]]
    searched: bool = False
    folded: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class PictureFigure:
    """A picture with its caption."""

    source: str  #: address of the picture, as :func:`embedded` gives it
    alt: str
    lines: Sequence[tuple[str, str]]  #: (text, tone): ``right``, ``wrong``, ``quiet`` or none
    place: int | None = None  #: position of the sample in its source


@dataclass(frozen=True)
class Strip:
    """Pictures side by side."""

    title: str
    note: str
    figures: Sequence[PictureFigure]
    wide: bool = False  #: each is several pictures side by side
    kind: ClassVar[str] = "strip"


@dataclass(frozen=True)
class MatrixCell:
    """How many images of one label had one answer."""

    count: int
    shade: int  #: 0..10, of the label's images
    right: bool
    opens: str  #: key of the images
    says: str


@dataclass(frozen=True)
class Matrix:
    """Counts of labels (rows) and answers (columns)."""

    caption: str
    names: Sequence[str]  #: of the columns
    rows: Sequence[tuple[str, Sequence[MatrixCell | None]]]  #: name and cells, nothing where there is none
    kind: ClassVar[str] = "matrix"


@dataclass(frozen=True)
class Frames:
    """Pictures that follow each other, one at a time."""

    id: str
    title: str
    note: str
    frames: Sequence[tuple[str, Sequence[PictureFigure]]]  #: what it is called, and what is shown
    wide: bool = False
    sheet: bool = False  #: each is one picture, as wide as the page
    kind: ClassVar[str] = "frames"


@dataclass(frozen=True)
class Beside:
    """Parts next to each other where there is room."""

    parts: Sequence[Any]
    kind: ClassVar[str] = "beside"


@dataclass(frozen=True)
class PageSection:
    """A part of the page with a heading."""

    id: str
    title: str
    parts: Sequence[Any]


@dataclass
class ImagePool:
    """Pictures that a click opens: each is in the page once, whatever opens it."""

    images: list[dict[str, Any]] = field(default_factory=list)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, figure: PictureFigure) -> int:
        """Its number, for :meth:`group`."""
        image = {"src": figure.source, "alt": figure.alt, "lines": list(figure.lines), "place": figure.place}
        self.images.append(image)
        return len(self.images) - 1

    def group(self, key: str, title: str, note: str, members: Sequence[int]) -> None:
        """What is shown for ``opens=key``."""
        self.groups[key] = {"title": title, "note": note, "images": list(members)}


def embedded(picture: bytes) -> str:
    """The address of a picture that is in the page: WebP, PNG or JPEG.

    Raises:
        ValueError: for other bytes.
    """
    return f"data:image/{picture_kind(picture)};base64,{base64.b64encode(picture).decode()}"


def picture_kind(picture: bytes) -> str:
    """``webp``, ``png`` or ``jpeg``.

    Raises:
        ValueError: for other bytes.
    """
    kinds = ((b"RIFF", "webp"), (b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"))
    kind = next((name for mark, name in kinds if picture.startswith(mark)), None)
    if kind is None:
        raise ValueError(f"a picture begins with {picture[:8]!r}, and is no WebP, PNG or JPEG")
    return kind
