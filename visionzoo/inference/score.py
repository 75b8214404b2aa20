"""How well a classifier names labelled images.

Legend: N images, K labels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from visionzoo.data.sources.base import Source, printable
from visionzoo.data.sources.open import open_evaluation
from visionzoo.data.sources.readable_names import readable_names
from visionzoo.inference.classifier import ImageLabeller, Report
from visionzoo.inference.stream import Output, Stream, Unreadable

#: Labels up to which a table of all counts fits a terminal.
TABLE_UP_TO = 12


@dataclass(frozen=True, kw_only=True)
class LabelledScore:
    """What came of naming labelled images."""

    labels: tuple[str, ...]  #: K names; the last one is that of unknown images, where there is a threshold for it
    matrix: np.ndarray  #: (K, K) int64 counts; rows true, columns named
    unreadable: tuple[Unreadable, ...] = ()
    templates: str | None = None  #: the sentences that labels were put into; None for a classifier without texts

    @property
    def images(self) -> int:
        """Number of images that were scored."""
        return int(self.matrix.sum())

    @property
    def accuracy(self) -> float:
        """Share of the images that were named right, in [0, 1]."""
        return float(np.trace(self.matrix)) / max(1, self.images)

    def confusions(self, count: int = 10) -> list[tuple[str, str, int]]:
        """(true, named, images) of the most frequent mistakes."""
        wrong = self.matrix - np.diag(np.diag(self.matrix))
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [(*divmod(int(i), len(wrong)), int(wrong.flat[i])) for i in order if wrong.flat[i]]
        return [(self.labels[i], self.labels[j], n) for i, j, n in pairs]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "accuracy": self.accuracy,
            "images": self.images,
            **({} if self.templates is None else {"templates": self.templates}),
            "labels": list(self.labels),
            "matrix": self.matrix.tolist(),
            "unreadable": [u._asdict() for u in self.unreadable],
        }

    def to_text(self) -> str:
        """Accuracy; with up to 12 labels all counts, otherwise the most frequent mistakes."""
        lines = [
            f"accuracy {100 * self.accuracy:.2f} % of {self.images:,} images, {len(self.labels)} labels "
            f"(chance {100 / len(self.labels):.2f} %)",
            *([] if self.templates is None else [f"templates: {self.templates}"]),
            "",
        ]
        if len(self.labels) <= TABLE_UP_TO:
            return "\n".join([*lines, *self._table()])
        lines.append("most frequent mistakes")
        return "\n".join([*lines, *(f"{n:8,d}  {true} named {named}" for true, named, n in self.confusions())])

    def _table(self) -> list[str]:
        names = [label if len(label) <= 16 else label[:15] + "…" for label in self.labels]
        left = max(len("true \\ named"), *map(len, names))
        widths = [max(len(name), len(f"{self.matrix[:, k].max():,d}")) for k, name in enumerate(names)]
        rows = [["true \\ named", *names]]
        rows += [[name, *(f"{n:,d}" for n in row)] for name, row in zip(names, self.matrix, strict=True)]
        return [
            "  ".join([row[0].ljust(left), *(cell.rjust(w) for cell, w in zip(row[1:], widths, strict=True))])
            for row in rows
        ]


def open_labelled(path: str) -> Source:
    """The labelled images of a data set to score: its validation split, else its test split, else all of it.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for data without labels, or with several for an image.
    """
    source = open_evaluation(path)
    if source.multi_label:
        raise ValueError(f"{path} has several labels per image; an accuracy needs one for each")
    return source


def class_labels(source: Source) -> tuple[str, ...]:
    """What the classes of a source are called in words, see :func:`readable_names`."""
    return readable_names(source.classes)


def score(
    classifier: ImageLabeller, source: Source, *, batch_size: int = 32, unknown: float | None = None
) -> LabelledScore:
    """Name the images of ``source`` and compare with their labels.

    Args:
        classifier: its labels are those of :func:`class_labels`, in any order and perhaps with others among them; or
            just as many, which then stand for the classes in their order.
        source: from :func:`open_labelled`; images without a label are passed over.
        batch_size: images sent through the model at a time.
        unknown: an image whose best label has a lower probability counts as named ``unknown``.

    Raises:
        ValueError: for labels that do not fit the classes, or where no image can be read.
    """
    scorer = classifier._scorer()
    place = _places(class_labels(source), scorer.labels)
    labels = (*scorer.labels, *(["unknown"] if unknown is not None else []))
    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    unreadable: list[Unreadable] = []
    for output, targets in labelled_outputs(classifier, scorer.scores, source, batch_size):
        unreadable += output.unreadable
        if output.positions:
            best, named = output.values.max(dim=1)
            if unknown is not None:
                named[best < unknown] = len(labels) - 1
            np.add.at(matrix, (place[targets], named.numpy()), 1)
    if not matrix.any():
        raise ValueError(f"none of the {len(unreadable)} labelled images can be read")
    templates = getattr(classifier, "templates_name", None)
    return LabelledScore(labels=labels, matrix=matrix, unreadable=tuple(unreadable), templates=templates)


def labelled_outputs(
    classifier: ImageLabeller, forward: Callable[[Tensor], Tensor], source: Source, batch_size: int
) -> Iterator[tuple[Output, np.ndarray]]:
    """Send the labelled images of ``source`` through a classifier's preprocessing and ``forward``.

    Gives for each batch what came of it, and the class of each image that was read, as the source numbers them.
    """
    labelled = np.flatnonzero(source.targets >= 0)
    stream = Stream(forward, classifier.preprocess, classifier.device, raw=classifier.takes_pixels)
    read, name = (lambda i: source.read(int(labelled[i]))), (lambda i: source.sample_id(int(labelled[i])))
    for output in stream.run(len(labelled), read, name, batch_size):
        yield output, source.targets[labelled[output.positions]]


def score_report(
    report: Report, folders: Mapping[str, str], labels: Sequence[str], templates: str | None = None
) -> LabelledScore:
    """Count answers that were given already, for images in class folders; others are passed over.

    Args:
        report: what a classifier said.
        folders: label -> folder of the images that it is right for.
        labels: K, all that may be answered.
        templates: what the labels were put into, for the record.
    """
    place = label_places(labels)
    named = {p[0][0] for p in report.predictions if p} - set(labels)  # an answer below the threshold of "unknown"
    every = (*labels, *sorted(named))
    matrix = np.zeros((len(every), len(every)), dtype=np.int64)
    if lost := [label for label in folders if place(label) is None]:
        raise ValueError(f"the folder {lost[0]} has the name of no label, or of several that differ in case alone")
    inside = {printable(os.path.join(folder, "")): place(label) for label, folder in folders.items()}
    for name, prediction in zip(report.names, report.predictions, strict=True):
        true = next((k for folder, k in inside.items() if name.startswith(folder)), None)
        if prediction is not None and true is not None:
            matrix[true, every.index(prediction[0][0])] += 1
    return LabelledScore(labels=every, matrix=matrix, unreadable=tuple(report.unreadable), templates=templates)


def label_places(labels: Sequence[str]) -> Callable[[str], int | None]:
    """Which of the labels a name is: the same, or the only one that differs in case alone; None for neither."""
    exact = {label: k for k, label in enumerate(labels)}
    folded = Counter(label.casefold() for label in labels)
    alone = {label.casefold(): k for label, k in exact.items() if folded[label.casefold()] == 1}
    return lambda name: exact.get(name, alone.get(name.casefold()))


def _places(classes: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """(K,) int64, the label of each class."""
    place = label_places(labels)
    missing = [name for name in classes if place(name) is None]
    if not missing:
        return np.array([place(name) for name in classes], dtype=np.int64)
    if len(missing) == len(classes) == len(labels):  # names of one's own, such as words for codes
        return np.arange(len(classes))
    shown = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    raise ValueError(
        f"there is no label for {len(missing)} of the {len(classes)} classes: {shown}; leave --labels out, name every "
        f"class, or give {len(classes)} names of your own in the order of the classes"
    )
