"""Each metric against its slow, written-out form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from visionzoo.metrics.classification import (
    class_scores,
    confusion_matrix,
)


def make(n: int = 200, k: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, (n,), generator=generator)
    logits = 2 * torch.randn(n, k, generator=generator) + 2 * torch.nn.functional.one_hot(labels, k)
    return logits.softmax(1), labels


def test_confusion_matrix() -> None:
    probabilities, labels = make()
    predicted = probabilities.argmax(1)
    slow = torch.zeros(7, 7, dtype=torch.int64)
    for p, t in zip(predicted.tolist(), labels.tolist(), strict=True):
        slow[t, p] += 1
    assert torch.equal(confusion_matrix(predicted, labels, 7), slow)


def test_class_scores() -> None:
    probabilities, labels = make(k=4)
    predicted = probabilities.argmax(1)
    scores = class_scores(confusion_matrix(predicted, labels, 4))
    for c in range(4):
        hit = sum(p == c and t == c for p, t in zip(predicted.tolist(), labels.tolist(), strict=True))
        precision, recall = hit / predicted.tolist().count(c), hit / labels.tolist().count(c)
        assert float(scores.precision[c]) == pytest.approx(precision)
        assert float(scores.recall[c]) == pytest.approx(recall)
        assert float(scores.f1[c]) == pytest.approx(2 * precision * recall / (precision + recall))
        assert int(scores.support[c]) == labels.tolist().count(c)


def test_class_scores_are_undefined_rather_than_zero() -> None:
    # class 0 is found; class 1 exists and is never predicted; class 2 is predicted and never exists; class 3 neither
    scores = class_scores(confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 1]), 4))
    nan = math.nan
    assert scores.precision.tolist() == pytest.approx([1, nan, 0, nan], nan_ok=True)
    assert scores.recall.tolist() == pytest.approx([1, 0, nan, nan], nan_ok=True)
    assert scores.f1.tolist() == pytest.approx([1, 0, 0, nan], nan_ok=True)


def test_class_scores_of_multi_label_data() -> None:
    from torchmetrics.functional.classification import multilabel_confusion_matrix

    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randint(0, 2, (2, 50, 3), generator=generator)
    scores = class_scores(multilabel_confusion_matrix(predicted, target, 3))
    for c in range(3):
        hit = int((predicted[:, c] & target[:, c]).sum())
        assert float(scores.precision[c]) == pytest.approx(hit / int(predicted[:, c].sum()))
        assert float(scores.recall[c]) == pytest.approx(hit / int(target[:, c].sum()))
        assert int(scores.support[c]) == int(target[:, c].sum())


def test_no_images() -> None:
    labels = torch.zeros(0, dtype=torch.int64)
    assert int(confusion_matrix(labels, labels, 3).sum()) == 0


def test_wrong_input_is_named() -> None:
    labels = torch.tensor([3, 4, 5])
    with pytest.raises(ValueError, match=r"labels run from 3 to 5; they must be in 0\.\.2"):
        confusion_matrix(labels % 3, labels, 3)
    with pytest.raises(ValueError, match=r"not \(2, 3\)"):
        class_scores(torch.zeros(2, 3))
