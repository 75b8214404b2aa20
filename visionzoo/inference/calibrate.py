"""Fit the probabilities of a classifier to labelled images, see :mod:`visionzoo.models.calibration`.

Legend: N images, K labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from visionzoo.data.sources.base import Source
from visionzoo.inference.classifier import ImageClassifier, ImageLabeller
from visionzoo.inference.score import class_labels, label_places, labelled_outputs, open_labelled
from visionzoo.inference.stream import Unreadable
from visionzoo.models.bundle import write_calibration
from visionzoo.models.calibration import Calibration
from visionzoo.runs.folder import RunFolder
from visionzoo.runs.lock import FolderLock


class Calibrated(NamedTuple):
    """What came of it."""

    calibration: Calibration
    unreadable: tuple[Unreadable, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self.calibration.to_dict(), "unreadable": [image._asdict() for image in self.unreadable]}

    def to_text(self) -> str:
        """One line."""
        found = self.calibration
        return (
            f"calibrated on {found.images:,} images: temperature {found.temperature:.3g}, calibration error "
            f"{100 * found.error[0]:.2f} %, with a temperature (cross-fitted) {100 * found.error[1]:.2f} %; sets and "
            f"unknown up to {found.levels[-1]:g}"
        )


def calibrate_run(
    run: str | Path, path: str, *, batch_size: int = 32, device: str | torch.device | None = None
) -> Calibrated:
    """Calibrate the classifier in a run folder on labelled images, and write it into the run's ``config.json``.

    Args:
        run: a run folder, or any folder with ``model.safetensors`` and ``config.json``.
        path: labelled data, of any kind that ``train.py`` takes: its validation split, else its test split, else all of
            it. The model must not have been trained on these images, or it promises too much.
        batch_size: images at a time.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError, ValueError: as :meth:`ImageClassifier.load` and :func:`calibrate_on`.
        OSError: while the run is being trained, or where its folder cannot be written; nothing is changed then.
    """
    if str(run).startswith("timm:"):
        raise ValueError(f"{run} has no folder that a calibration could be kept in; use ImageClassifier.calibrate")
    classifier = ImageClassifier.load(run, device=device)
    found = calibrate_on(classifier, path, batch_size=batch_size)
    folder = RunFolder.open(run).path
    lock = FolderLock(folder)
    try:
        write_calibration(folder, found.calibration)
    finally:
        lock.release()
    return found


def calibrate_on(classifier: ImageLabeller, path: str, *, batch_size: int = 32) -> Calibrated:
    """Calibrate a classifier in memory on labelled images; it keeps what is found.

    Args:
        classifier: its labels are the names of the classes of the data, in any order.
        path: as for :func:`calibrate_run`.
        batch_size: images at a time.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for data with several labels an image, classes that the classifier does not know, or too few images.
    """
    scorer = classifier._scorer()
    scorer.one_label_each("a calibration")
    source = open_labelled(path)
    places = _places(source, scorer.labels)
    logits, labels, unreadable = [], [], []
    for output, targets in labelled_outputs(classifier, scorer.logits, source, batch_size):
        unreadable += output.unreadable
        if output.positions:
            logits.append(output.values)
            labels.append(torch.from_numpy(places[targets]))
    empty = torch.zeros(0, len(scorer.labels)), torch.zeros(0, dtype=torch.int64)
    calibration = Calibration.fit(*((torch.cat(logits), torch.cat(labels)) if logits else empty))
    return Calibrated(classifier.use_calibration(calibration, scorer.labels), tuple(unreadable))


def _places(source: Source, labels: tuple[str, ...]) -> np.ndarray:
    """(classes,) int64, the label of each class, by its name as it stands or in words."""
    place = label_places(labels)
    for names in (source.classes, class_labels(source)):
        if all(place(name) is not None for name in names):
            return np.array([place(name) for name in names], dtype=np.int64)
    missing = [name for name in source.classes if place(name) is None]
    raise ValueError(
        f"the model knows no class {', '.join(map(repr, missing[:5]))}{' ...' if len(missing) > 5 else ''}; it knows "
        f"{', '.join(labels[:10])}{' ...' if len(labels) > 10 else ''}. Name the classes so, or leave these out"
    )
