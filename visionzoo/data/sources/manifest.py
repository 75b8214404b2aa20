"""CSV, TSV, JSONL and JSON manifests: one row per image, with its file name and its label.

The columns are named ``image`` and ``label`` (the aliases below work too); ``split`` is optional. Relative file names
are relative to the manifest. Several labels are a list in JSONL and ``cat|dog`` in CSV.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from visionzoo.data.images import ImageInput, UnreadableImage
from visionzoo.data.sources.base import FilesSource
from visionzoo.data.sources.labels import encode_labels
from visionzoo.data.sources.paths import found_name
from visionzoo.data.sources.rows import IMAGE_COLUMNS, cell_text, find_column, pick_column, read_rows

LABEL_COLUMNS = ("label", "labels", "class", "target", "category")


class ManifestSource(FilesSource):
    """Files listed in a manifest; rows without a file name stay, and are unreadable."""

    def raw(self, i: int) -> ImageInput:
        """The path of the file. Raises UnreadableImage where the row has none."""
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
        path: a .csv, .tsv, .jsonl, .ndjson or .json file, UTF-8 or UTF-16.
        names: class names that numeric labels index into.
        image_column, label_column: column names, where they are not among the usual ones.
        labelled: False reads no labels, whether there are some or not.

    Raises:
        ValueError: for a missing column, a row that cannot be read (see :func:`read_rows`), labels out of range, or
            text that is not UTF-8, with file and line.
    """
    rows = list(read_rows(path))
    if not rows:
        raise ValueError(f"{path} has no rows")
    columns = list(rows[0][1])
    image_key = pick_column(path, columns, image_column, IMAGE_COLUMNS, "image_column")
    label_key = pick_column(path, columns, label_column, LABEL_COLUMNS, "label_column") if labelled else ""
    split_key = find_column(columns, ("split",)) or "split"
    places = [f"{path} {place}" for place, _ in rows]
    # Encoded before splitting, so that every split has the same classes, also where a label is rare.
    labels = [_several(cell_text(row.get(label_key), where)) for where, (_, row) in zip(places, rows, strict=True)]
    classes, targets, multi_label = encode_labels(labels, names, places.__getitem__)
    root = os.path.dirname(path)
    files = [found_name(root, str(row.get(image_key) or "")) for _, row in rows]
    groups: dict[str, list[int]] = {}
    for i, (_, row) in enumerate(rows):
        groups.setdefault(str(row.get(split_key) or "").strip().lower(), []).append(i)
    return {
        split: ManifestSource(root, [files[i] for i in members], targets[np.array(members)], classes, multi_label)
        for split, members in groups.items()
    }


def _several(label: Any) -> Any:
    if isinstance(label, str) and "|" in label:
        return [part for part in label.split("|") if part.strip()]
    return label


def has_label_column(path: str) -> bool:
    """Whether the first row of a manifest has one of the usual columns of labels."""
    first = next(iter(read_rows(path)), None)
    return first is not None and find_column(list(first[1]), LABEL_COLUMNS) is not None
