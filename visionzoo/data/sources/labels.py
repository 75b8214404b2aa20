"""From the labels people write to class indices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from visionzoo.data.sources.base import NO_LABEL
from visionzoo.text import nfc

#: A label as it is found in a table: a name, a number, nothing, or several of them.
Label = str | int | float | None | Sequence[Any]


def encode_labels(
    labels: Sequence[Label], names: tuple[str, ...] | None, where: Callable[[int], str]
) -> tuple[tuple[str, ...], np.ndarray, bool]:
    """Turn labels into class indices.

    Numbers index into ``names``. Without names the classes are the different labels themselves, sorted, by value if all
    of them are whole numbers. One list anywhere makes the whole set multi-label.

    Args:
        labels: N labels; None and "" mean that nobody labelled it, an empty list that no class applies.
        names: class names in order, if the data say them.
        where: says where label ``i`` stands, for messages.

    Returns:
        classes (K names), targets (N,) int64 or (N, K) float32, and whether the data are multi-label.

    Raises:
        ValueError: for a label outside the named classes, a negative or fractional number, or another type.
    """
    multi_label = any(isinstance(label, list | tuple | np.ndarray) for label in labels)
    rows = [
        [_clean(value, where, i) for value in (label if isinstance(label, list | tuple | np.ndarray) else [label])]
        for i, label in enumerate(labels)
    ]
    found = [[value for value in row if value is not None] for row in rows]
    classes = names if names is not None else _collect(found)
    place = {name: k for k, name in enumerate(classes)}
    indices = [
        [_index(value, place, classes, names is not None, where, i) for value in row] for i, row in enumerate(found)
    ]
    if multi_label:
        targets = np.zeros((len(labels), len(classes)), dtype=np.float32)
        for i, row in enumerate(indices):
            targets[i, row] = 1.0
            if labels[i] is None or labels[i] == "":
                targets[i] = NO_LABEL
        return classes, targets, True
    return classes, np.array([row[0] if row else NO_LABEL for row in indices], dtype=np.int64), False


def _clean(value: Any, where: Callable[[int], str], i: int) -> str | int | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return nfc(value.strip()) or None
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    raise ValueError(f"{where(i)}: label {value!r} is not a class name or a whole number")


def _collect(rows: list[list[str | int]]) -> tuple[str, ...]:
    values = {str(value) for row in rows for value in row}
    if all(value.isdecimal() for value in values):
        return tuple(sorted(values, key=lambda value: (int(value), value)))
    return tuple(sorted(values))


def _all_whole(classes: tuple[str, ...]) -> bool:
    """Whether the classes are whole numbers, as a table of text writes them, and not names."""
    return all(re.fullmatch(r"-?\d+", name) for name in classes)


def _index(
    value: str | int,
    place: dict[str, int],
    classes: tuple[str, ...],
    named: bool,
    where: Callable[[int], str],
    i: int,
) -> int:
    negative = value < 0 if isinstance(value, int) else value not in place or _all_whole(classes)
    if negative and re.fullmatch(r"-\d+", str(value)):
        raise ValueError(f"{where(i)}: label {value} is out of range; class numbers start at 0")
    if not named or (isinstance(value, str) and value in place):
        return place[str(value)]
    try:
        number = int(value)
    except ValueError:
        raise ValueError(
            f"{where(i)}: label {value!r} is not one of the {len(classes)} classes, {classes[:8]}"
        ) from None
    if not 0 <= number < len(classes):
        raise ValueError(
            f"{where(i)}: label {number} is out of range; there are {len(classes)} classes, so 0..{len(classes) - 1}"
        )
    return number
