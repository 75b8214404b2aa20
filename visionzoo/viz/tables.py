"""Tables of results as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionzoo.files import write_csv

if TYPE_CHECKING:
    from visionzoo.metrics.classification import ClassScores


def per_class_csv(scores: ClassScores, classes: Sequence[str], out: str | Path) -> Path:
    """Write one row for each class: name, precision, recall, F1 and support; undefined scores are empty cells.

    Args:
        scores: K scores each, as :func:`visionzoo.metrics.classification.class_scores` gives them.
        classes: K names.
        out: where the CSV goes.

    Raises:
        ValueError: if there are more or fewer names than scores.
    """
    if any(len(column) != len(classes) for column in scores):
        raise ValueError(f"{len(classes)} class names do not fit {len(scores.support)} scores")
    columns = (scores.precision.tolist(), scores.recall.tolist(), scores.f1.tolist())
    rows = [
        [name, *("" if math.isnan(v) else f"{v:.6f}" for v in values), int(support)]
        for name, *values, support in zip(classes, *columns, scores.support.tolist(), strict=True)
    ]
    write_csv(out, ["class", "precision", "recall", "f1", "support"], rows)
    return Path(out)
