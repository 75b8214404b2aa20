"""What a held-out set says of a classifier: scores over all ranks, counts per class, and the most confident mistakes.

Legend: B batch, K classes, C channels, (H, W) pixels.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelConfusionMatrix,
    MultilabelF1Score,
)

from visionzoo.data.keys import sample_key
from visionzoo.models.calibration import LEAST, Calibration
from visionzoo.tasks.gathering import from_all_ranks
from visionzoo.tasks.pictures import KeptPicture, PictureChoice

#: Above this many classes the K x K matrix (8 K^2 bytes) is not kept, only the four counts of each class.
MATRIX_LIMIT = 2500
MISTAKES = 25
THUMBNAIL = 160  #: longest edge of a kept mistake, in pixels
#: Of more logits than this (100 MB; 25,000 images of 1,000 classes) those of images that are drawn at random are kept.
LOGITS_LIMIT = 25_000_000


class Mistake(NamedTuple):
    """One wrongly classified image."""

    confidence: float  #: probability of the predicted class, in [0, 1]
    position: int  #: of the sample in its source
    label: int
    predicted: int
    image: np.ndarray  #: (H, W, C) uint8


class Answers(NamedTuple):
    """Logits and labels of N images, on the CPU."""

    logits: Tensor  #: (N, K) float32
    labels: Tensor  #: (N,) int64
    position: Tensor  #: (N,) int64, of each image in its source


@dataclass(frozen=True)
class EvaluationResults:
    """What the pictures of a run are drawn from, and what its probabilities are mended by."""

    counts: Tensor  #: (K, K) confusion counts, or (K, 2, 2) for multi-label data and for very many classes; on the CPU
    mistakes: list[Mistake] = field(default_factory=list)  #: most confident first
    answers: Answers | None = None  #: by position; None for multi-label data
    pictures: list[KeptPicture] = field(default_factory=list)  #: the most telling first, where they were asked for

    @cached_property
    def calibration(self) -> Calibration | None:
        """Fitted on these images; None for multi-label data, too few images, and a model that has diverged."""
        found = self.answers
        if found is None or len(found.labels) < LEAST or not found.logits.isfinite().all():
            return None
        return Calibration.fit(found.logits, found.labels)

    @property
    def matrix(self) -> np.ndarray | None:
        """(K, K) counts, rows true; None where they were not kept."""
        return self.counts.numpy() if self.counts.ndim == 2 else None


class ClassificationEvaluation(nn.Module):
    """Accumulates batches; memory does not grow with the set, except for the exact mean average precision, and up to
    ``LOGITS_LIMIT`` for the logits that a calibration needs.

    Args:
        num_classes: K.
        multi_label: targets are (B, K) in {0, 1} instead of (B,) class indices.
    """

    def __init__(self, num_classes: int, multi_label: bool = False) -> None:
        super().__init__()
        self.num_classes, self.multi_label = num_classes, multi_label
        self.loss = MeanMetric()
        self.scores = nn.ModuleDict(_scores(num_classes, multi_label))
        self.counts = _counts(num_classes, multi_label)
        self._mistakes: list[Mistake] = []
        self._answers: list[Answers] = []
        self.pictures: PictureChoice | None = None  #: set it, on every rank, to keep pictures of the next evaluation

    @torch.no_grad()
    def update(
        self, logits: Tensor, labels: Tensor, loss: Tensor, images: Tensor, index: Tensor, weight: Tensor | None = None
    ) -> None:
        """Take a batch into account.

        Args:
            logits: (B, K). B may be 0.
            labels: (B,) int64 or (B, K).
            loss: scalar, the mean over the batch.
            images: (B, C, H, W) uint8.
            index: (B,) int64, position of each sample in its source.
            weight: scalar, what that mean divides by where it is not B: the sum of the samples' class weights.
        """
        if len(logits) == 0:
            return
        logits = logits.float()
        if weight is None:
            self.loss.update(loss, len(logits))
        else:  # a batch of classes of weight 0 alone has no mean
            self.loss.update(torch.where(weight > 0, loss, 0.0), weight)
        targets = labels.long()
        answers = logits.sigmoid() if self.multi_label else logits
        for metric in (*self.scores.values(), self.counts):
            assert isinstance(metric, Metric)
            metric.update(answers, targets)
        if not self.multi_label:
            self._keep_mistakes(logits.softmax(1), labels, images, index)
            self._answers.append(Answers(logits.cpu(), labels.cpu(), index.cpu()))
            if sum(len(part.labels) for part in self._answers) * self.num_classes > 2 * LOGITS_LIMIT:
                self._answers = [fewer(self._answers)]
            if self.pictures is not None:
                self.pictures.add(logits, labels, images, index)

    def _keep_mistakes(self, probabilities: Tensor, labels: Tensor, images: Tensor, index: Tensor) -> None:
        confidence, predicted = probabilities.max(1)
        wrong = (predicted != labels).nonzero().flatten()
        if len(self._mistakes) == MISTAKES:
            wrong = wrong[confidence[wrong] > self._mistakes[-1].confidence]
        wrong = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
        new = [
            Mistake(float(confidence[i]), int(index[i]), int(labels[i]), int(predicted[i]), thumbnail(images[i]))
            for i in wrong
        ]
        self._mistakes = _most_confident([*self._mistakes, *new])

    def compute(self) -> tuple[dict[str, Tensor], EvaluationResults]:
        """Scalars by name and what pictures need, over all ranks; then start afresh. Call it on every rank."""
        assert isinstance(self.counts, Metric)
        values = {"loss": self.loss.compute()}
        for name, metric in self.scores.items():
            assert isinstance(metric, Metric)
            values[name] = metric.compute()
        counts, mistakes = _as_matrix(self.counts.compute()).cpu(), _most_confident(from_all_ranks(self._mistakes))
        answers = from_all_ranks([fewer(self._answers)] if self._answers else [])
        pictures = [] if self.pictures is None else self.pictures.finish()
        results = EvaluationResults(counts, mistakes, fewer(answers) if answers else None, pictures)
        for part in (self.loss, *self.scores.values(), self.counts):
            assert isinstance(part, Metric)
            part.reset()
        self._mistakes, self._answers, self.pictures = [], [], None
        return values, results


def _scores(num_classes: int, multi_label: bool) -> dict[str, Metric]:
    if multi_label:
        return {
            "map": MultilabelAveragePrecision(num_classes, average="macro"),
            "f1": MultilabelF1Score(num_classes, average="macro"),
        }
    scores: dict[str, Metric] = {"accuracy": MulticlassAccuracy(num_classes, average="micro")}
    if num_classes > 5:
        scores["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return scores


def _counts(num_classes: int, multi_label: bool) -> Metric:
    if multi_label:
        return MultilabelConfusionMatrix(num_classes)
    if num_classes <= MATRIX_LIMIT:
        return MulticlassConfusionMatrix(num_classes)
    return MulticlassStatScores(num_classes, average=None)


def _as_matrix(counts: Tensor) -> Tensor:
    """Stat scores (K, 5) of (tp, fp, tn, fn, support) -> (K, 2, 2) as [[tn, fp], [fn, tp]]; matrices as they are."""
    if counts.ndim == 2 and counts.shape[1] == 5 != counts.shape[0]:
        tp, fp, tn, fn, _ = counts.unbind(1)
        return torch.stack([torch.stack([tn, fp], 1), torch.stack([fn, tp], 1)], 1)
    return counts


def _most_confident(mistakes: list[Mistake]) -> list[Mistake]:
    # the index decides between equals, so that the order does not depend on batches or ranks
    return heapq.nsmallest(MISTAKES, mistakes, key=lambda m: (-m.confidence, m.position))


def fewer(parts: list[Answers]) -> Answers:
    """One for all, by position, of as many images as ``LOGITS_LIMIT`` allows; the same whatever batches and ranks."""
    logits, labels, position = (torch.cat(fields) for fields in zip(*parts, strict=True))
    limit = max(LEAST, LOGITS_LIMIT // logits.shape[1])
    positions = position.tolist()
    if len(positions) > limit:  # not the first ones, which may be of the first classes
        order = sorted(range(len(positions)), key=lambda i: sample_key(positions[i]))[:limit]
    else:
        order = list(range(len(positions)))
    kept = sorted(order, key=positions.__getitem__)
    return Answers(logits[kept], labels[kept], position[kept])


def thumbnail(image: Tensor) -> np.ndarray:
    """(C, H, W) uint8 -> (H, W, C) uint8 on the CPU, C being 1 or 3, the longest edge at most :data:`THUMBNAIL`."""
    image = image[:3] if len(image) >= 3 else image[:1]
    scale = THUMBNAIL / max(image.shape[-2:])
    if scale < 1:
        size = [max(1, round(edge * scale)) for edge in image.shape[-2:]]
        small = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        image = small[0].round().clamp(0, 255).to(torch.uint8)
    return image.permute(1, 2, 0).cpu().numpy()
