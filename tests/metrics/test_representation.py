"""What features look like, against slow forms and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from visionzoo.metrics.representation import (
    alignment,
    dead_share,
    effective_negatives,
    effective_rank,
    entropy_share,
    nearest_accuracy,
    nearest_others,
    spread,
    uniformity,
)


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_effective_rank() -> None:
    assert effective_rank(torch.eye(8)) == pytest.approx(8, rel=1e-4)
    assert effective_rank(features(20, 1) @ features(1, 8)) == pytest.approx(1, abs=1e-3)


def test_alignment_uniformity_and_spread() -> None:
    x = features(6, 4)
    assert alignment(x, x) == 0
    assert alignment(x, -x) == pytest.approx(4)
    unit = F.normalize(x, dim=1)
    pairs = [(-2 * (unit[i] - unit[j]).pow(2).sum()).exp() for i in range(6) for j in range(i)]
    assert uniformity(x) == pytest.approx(float(torch.stack(pairs).mean().log()), rel=1e-5)
    assert spread(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    assert spread(torch.cat([x, -x])) == pytest.approx(1)


def test_dead_dimensions() -> None:
    x = features(50, 8)
    x[:, :2] = 3.0
    assert dead_share(x) == pytest.approx(0.25)


def test_nearest_accuracy_leaves_each_image_out(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = features(30, 5), torch.arange(30) % 3
    unit, right = F.normalize(x, dim=1), 0
    for i in range(30):
        cosines = [(float(unit[i] @ unit[j]), j) for j in range(30) if j != i]
        votes = [0.0, 0.0, 0.0]
        for cosine, j in sorted(cosines, reverse=True)[:4]:
            votes[int(labels[j])] += math.exp(cosine / 0.07)
        right += votes.index(max(votes)) == int(labels[i])
    assert nearest_accuracy(x, labels, 4) == pytest.approx(right / 30)
    whole = nearest_others(x, 4)
    monkeypatch.setattr("visionzoo.metrics.representation.ROWS", 7)
    assert torch.equal(nearest_others(x, 4)[1], whole[1])
    assert nearest_others(x, 99)[1].shape == (30, 29)


def test_how_many_others_count() -> None:
    same = torch.ones(10, 4)
    assert effective_negatives(same, same, 0.1) == pytest.approx(9)
    assert effective_negatives(features(10, 4), features(10, 4, 1), 1e-4) == pytest.approx(1, abs=1e-3)


def test_entropy_share() -> None:
    assert entropy_share(torch.full((3, 5), 0.2)) == pytest.approx(1)
    assert entropy_share(torch.eye(4)) == pytest.approx(0)
