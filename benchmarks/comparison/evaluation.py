"""What a trained classifier is worth: top-1 accuracy, calibration, and accuracy on corrupted images.

The classifier is the product's own, loaded from what the run exported; it computes in float32.

Legend: N images, K classes, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comparison.answers import Answers
from comparison.corruptions import SEVERITIES, Corrupter
from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.split import stratified_limit
from visionzoo.data.transforms import EvalTransform
from visionzoo.inference.classifier import ImageClassifier, ImageLabeller
from visionzoo.metrics.calibration import calibration_error

CHUNK = 512  #: images held at a time


def chosen(targets: np.ndarray, limit: int | None) -> np.ndarray:
    """Positions of up to ``limit`` images, every class by its share, the same ones each time; None for all."""
    if limit is None or limit >= len(targets):
        return np.arange(len(targets))
    return stratified_limit(targets, limit, seed=0)


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Share of images whose likeliest class is the right one."""
    return float((probabilities.argmax(1) == labels).float().mean())


class HeldOut:
    """Held-out images at the model's size, as (H, W, 3) uint8, read once."""

    def __init__(self, source: Source, classifier: ImageLabeller, limit: int | None) -> None:
        fit = EvalTransform(classifier.preprocess).fit
        self.pixels: list[np.ndarray] = []
        self.index: list[int] = []
        for i in chosen(source.targets, limit).tolist():
            try:
                self.pixels.append(np.array(fit(source.read(i))))
            except UnreadableImage:
                continue  # the same ones for every model; ``images`` in the record says how many were read
            self.index.append(i)
        self.labels = torch.from_numpy(source.targets[self.index])

    def chunks(self, corrupt: Corrupter | None) -> Iterator[list[np.ndarray]]:
        for start in range(0, len(self.pixels), CHUNK):
            part = zip(self.pixels[start : start + CHUNK], self.index[start : start + CHUNK], strict=True)
            yield [pixels if corrupt is None else corrupt(pixels, i) for pixels, i in part]

    def answers(self, classifier: ImageLabeller, batch: int, corrupt: Corrupter | None = None) -> Tensor:
        """(N, K) probabilities."""
        return torch.cat([classifier.probabilities(part, batch_size=batch) for part in self.chunks(corrupt)])


def evaluate(
    classifier: ImageClassifier,
    source: Source,
    *,
    limit: int | None,
    corruptions: list[str],
    corruption_limit: int | None,
    batch: int,
    answers_to: str | None = None,
) -> dict[str, Any]:
    """Score a classifier.

    Args:
        classifier: whose input is square.
        source: held-out images.
        limit: of them, for accuracy and calibration; None for all.
        corruptions: keys of :data:`comparison.corruptions.CORRUPTIONS`; may be empty.
        corruption_limit: images that are corrupted; None for all.
        batch: images at a time.
        answers_to: file for what was answered for each image; None for none.
    """
    held = HeldOut(source, classifier, limit)
    answers = held.answers(classifier, batch)
    if answers_to is not None:
        Answers.of(answers.numpy(), held.labels.numpy(), np.array(held.index)).write(answers_to)
    found: dict[str, Any] = {
        "images": len(held.labels),
        "accuracy": accuracy(answers, held.labels),
        "ece": calibration_error(answers, held.labels),
    }
    if not corruptions:
        return found
    del held
    few = HeldOut(source, classifier, corruption_limit)
    edge = max(classifier.preprocess.image_size)
    found["corrupted_images"] = len(few.labels)
    found["clean_accuracy_of_these"] = accuracy(few.answers(classifier, batch), few.labels)
    found["corrupted"] = {
        name: [accuracy(few.answers(classifier, batch, Corrupter(name, s, edge)), few.labels) for s in SEVERITIES]
        for name in corruptions
    }
    return found
