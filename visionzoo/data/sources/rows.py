"""Rows of CSV, TSV, JSONL and JSON files as people and spreadsheets write them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from visionzoo.data.sources.paths import files_in, split_of
from visionzoo.text import check_text, parse_json, read_text

#: Endings of tables that are looked for in folders; a ``.json`` has to be named.
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "image_name")
_DELIMITERS = (",", ";", "\t", "|")

#: Where a row stands ("line 3"), and its columns.
Row = tuple[str, dict[str, Any]]


def is_table(path: str) -> bool:
    """Whether a file is named as one that :func:`read_rows` reads."""
    return path.lower().endswith((*ENDINGS, ".json"))


def manifests_in(folder: str) -> list[str]:
    """The tables of a folder that are named after a split."""
    return [file for file in files_in(folder, *ENDINGS) if split_of(os.path.basename(file))]


def read_rows(path: str) -> Iterator[Row]:
    """Each row of a table: where it stands, and its columns.

    A table of text is separated by what its heading has most of: comma, semicolon, tab or ``|``. Space around headings
    and after a separator does not count. A tab-separated file whose quotes do not add up is read as the format has it,
    where a quote is a character like others.

    Raises:
        ValueError: with file and line, for another encoding than UTF-8 or UTF-16, a row with more or fewer fields than
            the heading, a quote that is not closed, and what is not JSON.
    """
    text = read_text(path, keep_bytes=True)
    if path.lower().endswith((".csv", ".tsv")):
        yield from _table(path, text)
    elif path.lower().endswith(".json") or text.lstrip()[:1] == "[":
        yield from _array(path, text)
    else:
        for number, line in enumerate(io.StringIO(text), start=1):
            if line.strip():
                yield f"line {number}", _object(parse_json(line, f"{path} line {number}"), f"{path} line {number}")


def find_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of ``names`` that is a column, in its spelling there: ``Image`` and `` image`` are ``image``."""
    plain = {column.strip().casefold(): column for column in reversed(columns)}
    for name in names:
        if name in columns:
            return name
        if name.casefold() in plain:
            return plain[name.casefold()]
    return None


def pick_column(path: str, columns: list[str], wanted: str | None, usual: tuple[str, ...], option: str) -> str:
    """The column to read: the one asked for, or the first usual one that is there.

    Raises:
        ValueError: if there is none; the message lists what there is.
    """
    found = find_column(columns, (wanted,) if wanted is not None else usual)
    if found is None:
        need = repr(wanted) if wanted is not None else f"{usual[0]!r}"
        raise ValueError(f"{path} has no column {need}; it has {columns}. Name the right one with --data.{option}")
    return found


def cell_text(value: Any, where: str) -> Any:
    """A label or caption, or a list of them: text is checked, everything else stays.

    Raises:
        ValueError: see :func:`visionzoo.text.check_text`.
    """
    if isinstance(value, str):
        return check_text(value, where)
    return [cell_text(item, where) for item in value] if isinstance(value, list) else value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f'{where} is {type(value).__name__}; need an object such as {{"image": "1.jpg", "label": "cat"}}'
        )
    return value


def _array(path: str, text: str) -> Iterator[Row]:
    """Objects of one list, which may go over many lines; numbered by position, since JSON's parser keeps no lines."""
    rows = parse_json(text, path)
    if not isinstance(rows, list):
        keys = f" with {list(rows)[:6]}" if isinstance(rows, dict) else ""
        raise ValueError(f"{path} holds {type(rows).__name__}{keys}; need a list of objects, one for each image")
    for number, row in enumerate(rows, start=1):
        yield f"item {number}", _object(row, f"{path} item {number}")


def _table(path: str, text: str) -> Iterator[Row]:
    heading = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    counts = [heading.count(d) for d in _DELIMITERS]
    tab = path.lower().endswith(".tsv") and heading.count("\t") > 0
    delimiter = "\t" if tab else _DELIMITERS[counts.index(max(counts))]
    try:
        records = list(_records(path, text, delimiter, quoted=True))
    except ValueError:
        if delimiter != "\t":
            raise
        records = list(_records(path, text, delimiter, quoted=False))
    if not records:
        return
    columns = _unique(path, [name.strip() for name in records[0][1]])
    for line, fields in records[1:]:
        while len(fields) > len(columns) and not fields[-1].strip():  # some programs end each line with a separator
            fields.pop()
        if len(fields) != len(columns):
            hint = (
                f"put a text with {json.dumps(delimiter)} in it into quotes"
                if len(fields) > len(columns)
                else "is it cut off, or is there a line break inside a text without quotes?"
            )
            raise ValueError(
                f"{path} line {line} has {len(fields)} fields and the heading {len(columns)} ({columns}); {hint}"
            )
        yield f"line {line}", dict(zip(columns, fields, strict=True))


def _unique(path: str, columns: list[str]) -> list[str]:
    """The headings; columns without one get a number. Raises ValueError for a heading that is there twice."""
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise ValueError(f"{path} has the column {twice[0]!r} {columns.count(twice[0])} times: {columns}; rename one")
    return [name or f"column {k}" for k, name in enumerate(columns, start=1)]


def _records(path: str, text: str, delimiter: str, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, fields) of every record that is not blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=delimiter != "\t",
        strict=True,
    )
    begin, width = 1, 0
    try:
        for fields in reader:
            width = width or len(fields)
            if reader.line_num > begin:
                _refuse_swallowed(path, begin, fields, delimiter, width)
            if any(field.strip() for field in fields):
                yield begin, fields
            begin = reader.line_num + 1
    except csv.Error as error:
        hint = "a quote is opened and not closed" if "unexpected end" in str(error) else str(error)
        raise ValueError(
            f'{path} line {begin}: {hint}; inside a text in quotes, a quote is written twice ("")'
        ) from error


def _refuse_swallowed(path: str, line: int, fields: list[str], delimiter: str, width: int) -> None:
    """Raises ValueError where a text of several lines holds a row of its own: a quote was not closed where it should.

    A row of its own has as many fields as the heading, one of them a file name with an ending that the record has too.
    """
    endings = {os.path.splitext(field)[1] for field in fields if "\n" not in field} - {""}
    for field in fields:
        for inner in field.splitlines()[1:]:
            parts = inner.split(delimiter)
            if len(parts) == width > 1 and any(os.path.splitext(part.strip('" '))[1] in endings for part in parts):
                raise ValueError(
                    f"{path} line {line}: a quote is opened here, and what it holds looks like rows of their own "
                    f"({inner[:60]!r}); close it"
                )
