"""Each loss against the loops in its docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visionzoo.losses.classification import balanced_class_weights, binary_cross_entropy, cross_entropy

B, K = 5, 4


def slow_cross_entropy(logits: torch.Tensor, soft: torch.Tensor, e: float, w: torch.Tensor) -> float:
    above = below = 0.0
    for b in range(B):
        total = sum(math.exp(v) for v in logits[b].tolist())
        for k in range(K):
            p = math.exp(float(logits[b, k])) / total
            t = float(soft[b, k])
            above += float(w[k]) * ((1 - e) * t + e / K) * -math.log(p)
            below += float(w[k]) * t
    return above / below


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_the_written_out_form(smoothing: float, weighted: bool, soft: bool) -> None:
    torch.manual_seed(0)
    logits, weights = torch.randn(B, K), torch.rand(K) + 0.5 if weighted else None
    target = torch.rand(B, K).softmax(1) if soft else torch.randint(K, (B,))
    full = target if soft else F.one_hot(target, K).float()
    expected = slow_cross_entropy(logits, full, smoothing, torch.ones(K) if weights is None else weights)
    assert float(cross_entropy(logits, target, label_smoothing=smoothing, class_weights=weights)) == pytest.approx(
        expected, rel=1e-5
    )


def test_hard_and_one_hot_targets_are_the_same() -> None:
    torch.manual_seed(1)
    logits, target, weights = torch.randn(B, K), torch.randint(K, (B,)), torch.rand(K)
    options = {"label_smoothing": 0.2, "class_weights": weights}
    torch.testing.assert_close(
        cross_entropy(logits, target, **options), cross_entropy(logits, F.one_hot(target, K), **options)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_is_the_written_out_form(smoothing: float) -> None:
    torch.manual_seed(2)
    logits, target, weights = torch.randn(B, K), torch.randint(2, (B, K)).float(), torch.rand(K)
    total = 0.0
    for b in range(B):
        for k in range(K):
            p = 1 / (1 + math.exp(-float(logits[b, k])))
            s = (1 - smoothing) * float(target[b, k]) + smoothing / 2
            total += float(weights[k]) * (-s * math.log(p) - (1 - s) * math.log(1 - p))
    loss = binary_cross_entropy(logits, target, label_smoothing=smoothing, class_weights=weights)
    assert float(loss) == pytest.approx(total / (B * K), rel=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_losses_are_float32_and_survive_an_empty_batch(loss) -> None:
    logits = torch.zeros(0, K, dtype=torch.bfloat16, requires_grad=True)
    value = loss(logits, torch.zeros(0, K))
    value.backward()
    assert value.dtype == torch.float32
    assert value == 0
    assert loss(torch.randn(B, K, dtype=torch.bfloat16), torch.rand(B, K).softmax(1)).dtype == torch.float32


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert balanced_class_weights(labels.bincount()).tolist() == pytest.approx(expected.tolist())
    assert balanced_class_weights(torch.tensor([3, 0])).tolist() == [0.5, 0.0]


def test_losses_by_name_and_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionzoo.losses import classification

    monkeypatch.setattr(classification, "LOSSES", dict(classification.LOSSES))
    assert classification.named_loss("cross_entropy") is cross_entropy
    with pytest.raises(ValueError, match="'cross_entrpy' is unknown; known are cross_entropy"):
        classification.named_loss("cross_entrpy")

    def summed(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
        return F.cross_entropy(logits, target, reduction="sum")

    def each(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    for loss, message in (
        (summed, "mean over images"),
        (each, "a scalar with a gradient"),
        (F.cross_entropy, "fails for logits .*class_weights"),
    ):
        with pytest.raises(ValueError, match=message):
            classification.register_loss("mine", loss)
    classification.register_loss("mine", lambda x, t, **options: summed(x, t) / len(x))
    with pytest.raises(ValueError, match="'mine' is registered already"):
        classification.register_loss("mine", cross_entropy)
    with pytest.raises(ValueError, match="'cross_entropy' is registered already"):
        classification.register_loss("cross_entropy", cross_entropy)


def test_binary_cross_entropy_of_class_indices_is_one_class_against_the_others() -> None:
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    assert torch.equal(binary_cross_entropy(logits, target), binary_cross_entropy(logits, F.one_hot(target, 3)))
