"""Results for people on a terminal, and for programs elsewhere."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionzoo.files import write_csv, write_json
from visionzoo.terminal import visible_json, visible_name


def check_target(option: str, value: str | None, ending: str) -> None:
    """Refuse a target that is not named like a table: ``predict RUN --json photo.jpg`` would overwrite the photo.

    Raises:
        ValueError: if ``value`` is a file name without ``ending``.
    """
    if value not in (None, "-") and Path(str(value)).suffix.lower() != ending:
        raise ValueError(
            f"{option} {value}: the file must end in {ending}; to print instead, put {option} last or use {option} -"
        )


#: What a picture can be written as; another ending would overwrite something that is none.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def check_picture(option: str, value: str, sources: Sequence[str], endings: Sequence[str] = PICTURES[:4]) -> None:
    """Refuse a target that is not named like a picture, or that is one of the images to be read.

    Raises:
        ValueError: saying which.
    """
    if Path(value).suffix.lower() not in endings:
        raise ValueError(f"{option} {value}: the file must end in one of {', '.join(endings)}")
    for source in sources:
        if os.path.exists(value) and os.path.exists(source) and os.path.samefile(value, source):
            raise ValueError(f"{option} {value} is the image itself; name another file")


def emit_json(value: Any, target: str) -> None:
    """Write JSON to a file, or to stdout for ``-``."""
    if target == "-":
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        sys.stdout.write(visible_json(text) + "\n")
    else:
        write_json(target, value)


def emit_csv(header: Sequence[str], rows: Sequence[Sequence[Any]], target: str) -> None:
    """Write CSV to a file, or to stdout for ``-``: exact for programs, escaped for a person at a terminal."""
    if target == "-":
        if sys.stdout.isatty():
            header, rows = _visible(header), [_visible(row) for row in rows]
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    else:
        write_csv(target, header, rows)


def _visible(cells: Sequence[Any]) -> list[str]:
    return [visible_name(cell) for cell in cells]
