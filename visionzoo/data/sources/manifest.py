"""CSV and JSONL manifests: one line per image, with its file name and its label.

The columns are named ``image`` and ``label`` (the aliases below work too); ``split`` is optional. Relative file names
are relative to the manifest. Several labels are a list in JSONL and ``cat|dog`` in CSV.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from visionzoo.data.images import ImageInput, UnreadableImage
from visionzoo.data.sources.base import FilesSource
from visionzoo.data.sources.labels import encode_labels

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path")
LABEL_COLUMNS = ("label", "labels", "class", "target", "category")


class ManifestSource(FilesSource):
    """Files listed in a manifest; rows without a file name stay, and are unreadable."""

    def raw(self, i: int) -> ImageInput:
        if not self.paths[i]:
            raise UnreadableImage("the manifest has no file name here")
        return super().raw(i)


def read_manifest(
    path: str,
    *,
    names: tuple[str, ...] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> dict[str, ManifestSource]:
    """Read a manifest into sources by the value of its ``split`` column, in lower case ("" without one).

    Args:
        path: a .csv, .tsv, .jsonl or .ndjson file, UTF-8.
        names: class names that numeric labels index into.
        image_column, label_column: column names, where they are not among the usual ones.
        labelled: False reads no labels, whether there are some or not.

    Raises:
        ValueError: for a missing column, a line that is not JSON, or labels out of range, with file and line.
    """
    rows = list(read_rows(path))
    if not rows:
        raise ValueError(f"{path} has no rows")
    columns = list(rows[0][1])
    image_key = pick_column(path, columns, image_column, IMAGE_COLUMNS, "image_column")
    label_key = pick_column(path, columns, label_column, LABEL_COLUMNS, "label_column") if labelled else ""
    lines = [line for line, _ in rows]
    # Encoded before splitting, so that every split has the same classes, also where a label is rare.
    labels = [_several(row.get(label_key)) for _, row in rows]
    classes, targets, multi_label = encode_labels(labels, names, lambda i: f"{path} line {lines[i]}")
    files = [os.fsencode(str(row.get(image_key) or "")) for _, row in rows]
    groups: dict[str, list[int]] = {}
    for i, (_, row) in enumerate(rows):
        groups.setdefault(str(row.get("split") or "").strip().lower(), []).append(i)
    root = os.path.dirname(path)
    return {
        split: ManifestSource(root, [files[i] for i in members], targets[np.array(members)], classes, multi_label)
        for split, members in groups.items()
    }


def pick_column(path: str, columns: list[str], wanted: str | None, usual: tuple[str, ...], option: str) -> str:
    """The column to read: the one asked for, or the first usual one that is there.

    Raises:
        ValueError: if there is none; the message lists what there is.
    """
    for name in (wanted,) if wanted is not None else usual:
        if name in columns:
            return name
    need = repr(wanted) if wanted is not None else f"{usual[0]!r}"
    raise ValueError(f"{path} has no column {need}; it has {columns}. Name the right one with --data.{option}")


def _several(label: Any) -> Any:
    if isinstance(label, str) and "|" in label:
        return [part for part in label.split("|") if part.strip()]
    return label


def read_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, columns) of each row. Raises ValueError, with file and line, for what cannot be parsed."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.lower().endswith((".csv", ".tsv")):
            reader = csv.DictReader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",")
            try:
                for row in reader:
                    yield reader.line_num, row
            except csv.Error as error:
                raise ValueError(f"{path} line {reader.line_num}: {error}") from error
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path} line {number} is {type(row).__name__}; need an object such as "
                    '{"image": "1.jpg", "label": "cat"}'
                )
            yield number, row
