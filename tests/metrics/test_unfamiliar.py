"""Scores of known and unknown images, and the likeness of layers, against their definitions."""

from __future__ import annotations

import pytest
import torch

from visionzoo.metrics.similarity import linear_cka
from visionzoo.metrics.unfamiliar import energy_score, max_softmax, separation


def test_separation_is_its_definition_with_ties() -> None:
    random = torch.Generator().manual_seed(0)
    known = torch.randint(0, 12, (60,), generator=random).float()
    other = torch.randint(-3, 9, (41,), generator=random).float()
    area, rate = separation(known, other)
    wanted = sum(1.0 if k > o else 0.5 if k == o else 0.0 for k in known for o in other) / (60 * 41)
    assert area == pytest.approx(wanted)
    threshold = max(t for t in known.tolist() if sum(k >= t for k in known.tolist()) >= 57)  # 95 % of 60
    assert rate == pytest.approx(sum(o >= threshold for o in other.tolist()) / 41)
    assert separation(known + 100, other) == (1.0, 0.0)
    with pytest.raises(ValueError, match="0 known"):
        separation(known[:0], other)


def test_scores_are_their_formulas() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    assert torch.allclose(energy_score(logits, 2.0), 2 * (logits / 2).exp().sum(1).log())
    assert torch.allclose(max_softmax(logits), (logits.exp() / logits.exp().sum(1, keepdim=True)).max(1).values)


def test_alike_layers_have_one_and_unrelated_ones_nothing() -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(40, 200, generator=random)
    turned = 3 * x @ torch.linalg.qr(torch.randn(200, 200, generator=random)).Q + 5
    assert linear_cka(x, turned) == pytest.approx(1.0, abs=1e-5)
    unrelated = linear_cka(x, torch.randn(40, 300, generator=random))
    assert abs(unrelated) < 0.15  # the biased form has 0.8 here
    centred = [y - y.mean(0) for y in (x, torch.randn(40, 300, generator=random))]
    biased = (centred[0].T @ centred[1]).square().sum() / (
        (centred[0].T @ centred[0]).square().sum() * (centred[1].T @ centred[1]).square().sum()
    ) ** 0.5
    assert biased > 0.7
    with pytest.raises(ValueError, match="do not vary"):
        linear_cka(torch.ones(5, 3), x[:5])
