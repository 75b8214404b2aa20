"""What there is to learn from, and whether it can be learned from at all."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionzoo.data.check import DataReport, check_splits
from visionzoo.data.sources.base import Source, Splits, class_counts, fingerprint
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.reading import LabelReading
from visionzoo.data.sources.split import limited, split_by_file

#: Images up to which all are looked at beforehand; of more, some.
_LOOKED_AT = 4000
#: Least number of held-out training images by which recipes are told apart.
LEAST_DEV = 20


@dataclass(frozen=True)
class Photos:
    """Labelled images: those to learn from, and those that are looked at once, at the end."""

    path: str
    train: Source
    final: Source | None  #: the validation split, else the test split
    report: DataReport

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.train.classes

    @property
    def pixels(self) -> int:
        """Median of the shorter edge."""
        split = self.report.splits["train"]
        return max(1, min(split.width[1], split.height[1]))

    @property
    def fingerprint(self) -> str:
        """A hash of which images are there, under which names."""
        return fingerprint(Splits(train=self.train, val=self.final))

    def copies(self, source: Source, places: np.ndarray) -> np.ndarray:
        """(N,) the group of each image at ``places`` (N,) of a source: files with the same content are in one."""
        group: dict[str, int] = {}
        for number, ids in enumerate(self.report.duplicates_within):
            group.update(dict.fromkeys((name.removeprefix("train: ") for name in ids), number))
        first = len(self.report.duplicates_within)
        return np.array([group.get(source.sample_id(int(p)), first + i) for i, p in enumerate(places)], np.int64)

    @property
    def labelled(self) -> int:
        """Training images that have a label."""
        return int((self.train.targets >= 0).sum())


def open_photos(path: str | os.PathLike[str], val_path: str | None, seed: int) -> Photos:
    """Open and look at a data set.

    Args:
        path: as ``--data.path`` of ``classify``.
        val_path: held-out images of their own.
        seed: of what is held out where the data do not say.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for data that nothing can be learned from: the message says what is missing.
    """
    path = os.fspath(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        splits = open_data(path, "labels", LabelReading(seed=seed), val_path=val_path)
    if splits.multi_label:
        raise ValueError(f"{path} has several labels for an image, and fit is for one each; use train.py classify fit")
    if splits.train is None:
        raise ValueError(f"{path} has images to evaluate on alone; give some to learn from")
    counts = class_counts(splits.train)
    known = int((counts > 0).sum())
    if known < 2:
        names = ", ".join(map(repr, splits.classes[:3]))
        raise ValueError(
            f"{path} has {int(counts.sum()):,} training images of {known} {'class' if known == 1 else 'classes'} "
            f"({names}); telling apart takes two classes or more: put images of each into a folder of its own"
        )
    final = splits.val or splits.test
    looked = Splits[Source](train=_some(splits.train, seed), val=None if final is None else _some(final, seed))
    report = check_splits(path, "labels", looked, said=[str(w.message) for w in said], progress=sys.stderr.isatty())
    return Photos(path, splits.train, final, report)


def _some(source: Source, seed: int) -> Source:
    count = int((source.targets >= 0).sum())
    return source if count <= _LOOKED_AT else limited(source, _LOOKED_AT, seed)


def dev_fraction(images: int) -> float:
    """Share of the training images by which recipes are chosen: some 300, but no more than a fifth of few."""
    return float(np.clip(round(300 / images, 3), 0.05, 0.2))


def dev_split(train: Source, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions trained on and held out: those of ``dev_fraction`` of :class:`visionzoo.data.classify.ClassifyData`."""
    return split_by_file(train, dev_fraction(len(train)), seed)


def run_name(path: str, backbone: str) -> str:
    """What the run folder is called where nobody says."""
    stem = Path(path.rstrip("/\\")).name.split(".")[0] or "photos"
    return f"fit-{stem}-{backbone.removeprefix('timm/')}"
