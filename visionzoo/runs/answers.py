"""What a classifier answered for held-out images: ``answers.parquet`` of a run folder, a row for each image.

It is written at the end of training, so that a page of the run needs neither the model nor the data.

Legend: N images that have a row, K classes, R bins.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from visionzoo.plain import check_types
from visionzoo.runs.tables import read_table, write_table

#: Images that have a row, at most.
ROWS = 20_000
#: Answers that are kept of each image.
TOP = 5
#: Cells of the confusion matrix that are kept, the fullest first.
CELLS = 100_000
COLUMNS = {
    "sample": "string",  #: where it came from
    "position": "int64",  #: of the sample in its source
    "label": "int64",  #: its class
    "answers": "list<int64>",  #: the likeliest classes, best first
    "probabilities": "list<float>",  #: of these, as ``predict`` gives them
    "first_right": "int64",  #: the epoch of the first validation that had it right; 0 for none
    "wrong_until": "int64",  #: the epoch of the last validation that had it wrong; 0 for none
    "times_right": "int64",  #: validations that had it right
    "picture": "binary",  #: small, as WebP; nothing where none was kept
}


@dataclass(frozen=True, kw_only=True)
class AnswersAbout:
    """What holds for all rows, and what is known of images that have none."""

    stage: str  #: ``val`` or ``test``
    images: int  #: that were answered
    classes: tuple[str, ...]  #: K names, in the order of the numbers
    matrix: tuple[tuple[int, int, int], ...]  #: (label, answer, images) of each cell that is not empty, of all images
    cells: int  #: of the matrix that are not empty; more than ``matrix`` has, where that was cut
    validations: int  #: while it trained
    temperature: float | None  #: that the probabilities have; None without a calibration
    cross_fitted: (
        bool  #: whether it is of these images, so that errors and diagrams have that of the other half of them
    )
    #: (images, mean confidence, share that is right) of each of R bins of equal width, without a temperature, and with
    reliability: tuple[tuple[tuple[float, float, float], ...], ...]
    calibration_error: tuple[float, ...]  #: expected, without a temperature, and with


@dataclass(frozen=True)
class HeldOutAnswers:
    """The table, read."""

    about: AnswersAbout
    rows: dict[str, list[Any]]  #: the columns of :data:`COLUMNS`, N values each


def write_answers(path: str | Path, rows: dict[str, Any], about: AnswersAbout) -> None:
    """Write ``answers.parquet``; a list or (N,) numbers for each of :data:`COLUMNS`."""
    write_table(path, COLUMNS, rows, asdict(about))


def read_answers(path: str | Path) -> HeldOutAnswers:
    """Read ``answers.parquet``, checked.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that is damaged, or whose numbers cannot be.
    """
    rows, told = read_table(path, COLUMNS)
    told.pop("schema_version")
    hints = typing.get_type_hints(AnswersAbout)
    if odd := sorted(set(told) ^ {f.name for f in fields(AnswersAbout)}):
        raise ValueError(f"{path} has unknown keys or lacks some: {', '.join(odd)[:200]}")
    check_types(told, hints, f"{path}: ")
    about = AnswersAbout(**{k: _tuples(v) for k, v in told.items()})
    _check(path, rows, about)
    return HeldOutAnswers(about, rows)


def _check(path: str | Path, rows: dict[str, list[Any]], about: AnswersAbout) -> None:
    k = len(about.classes)
    diagrams = len(about.reliability)
    if not k or not 1 <= diagrams == len(about.calibration_error) <= 2 or any(not bins for bins in about.reliability):
        raise ValueError(
            f"{path} has {k} classes and {diagrams} reliability diagrams; need some classes, 1 or 2 diagrams"
        )
    if any(v is None for name, column in rows.items() if name != "picture" for v in column):
        raise ValueError(f"{path} lacks values")
    numbers = [c for cell in about.matrix for c in cell[:2]] + rows["label"]
    numbers += [a for row in rows["answers"] for a in row]
    if any(not 0 <= n < k for n in numbers):
        raise ValueError(f"{path} names classes outside 0..{k - 1}")
    pairs = zip(rows["answers"], rows["probabilities"], strict=True)
    if any(len(a) != len(p) or not a or not all(0 <= x <= 1 for x in p) for a, p in pairs):
        raise ValueError(f"{path} has an image without answers, or with probabilities outside 0..1")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def fullest(cells: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """The fullest :data:`CELLS` of (label, answer, images), in the order of the matrix."""
    if len(cells) > CELLS:
        cells = sorted(cells, key=lambda c: -c[2])[:CELLS]
    return tuple(sorted(cells))
