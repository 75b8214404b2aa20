"""What a network answered for each held-out image: a Parquet file beside the record of its training.

Legend: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionzoo.runs.tables import read_table, write_table

COLUMNS = {"position": "int64", "label": "int64", "answer": "int64", "confidence": "float"}


@dataclass(frozen=True)
class Answers:
    """N images in the order of their source."""

    position: np.ndarray  #: (N,) int64, in the source
    label: np.ndarray  #: (N,) int64
    answer: np.ndarray  #: (N,) int64, the likeliest class
    confidence: np.ndarray  #: (N,) float, its probability

    @property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return self.answer == self.label

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, position: np.ndarray) -> Answers:
        """From (N, K) probabilities, (N,) labels and (N,) places."""
        return cls(position, labels, probabilities.argmax(1), probabilities.max(1))

    def write(self, path: str | Path) -> None:
        write_table(path, COLUMNS, {name: getattr(self, name) for name in COLUMNS}, {"images": len(self.label)})


def read_answers(path: str | Path) -> Answers:
    """Raises FileNotFoundError, ValueError: as ``read_table``."""
    columns, _ = read_table(path, COLUMNS)
    return Answers(**{name: np.array(columns[name]) for name in COLUMNS})
