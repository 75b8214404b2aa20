"""Logistic regression against scikit-learn's, and what a prior does to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from visionzoo.inference.linear import PRIOR_ALONE, Linear, Scale, fit_path, tensors


def some(n: int = 240, d: int = 20, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, k, n)
    x = (rng.normal(size=(k, d))[y] + rng.normal(size=(n, d))) * rng.uniform(0.1, 5, d) + 3
    return x.astype(np.float32), y


@pytest.mark.parametrize("strength", [1e-2, 1e-1, 1.0])
def test_it_is_scikit_learns(strength: float) -> None:
    x, y = some()
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (strength * len(y)), max_iter=5000, tol=1e-9))
    expected = theirs.fit(x, y).predict_proba(x)
    ours = fit_path(*tensors(x, y), 4, (strength,))[0].logits(torch.from_numpy(x)).softmax(1)
    assert np.abs(ours.numpy() - expected).max() < 1e-3


def test_a_path_is_its_single_fits() -> None:
    x, y = some()
    together = fit_path(*tensors(x, y), 4, (1e-2, 1.0))
    for strength, head in zip((1e-2, 1.0), together, strict=True):
        alone = fit_path(*tensors(x, y), 4, (strength,))[0]
        assert (head.weight - alone.weight).abs().max() < 2e-3


def test_a_strong_penalty_leaves_the_prior_and_a_weak_one_the_data() -> None:
    x, y = some()
    features, labels = tensors(x, y)
    generator = torch.Generator().manual_seed(0)
    prior = Linear(torch.randn(4, 20, generator=generator), torch.randn(4, generator=generator))
    alone, strong, weak = fit_path(features, labels, 4, (PRIOR_ALONE, 1e4, 1e-4), prior)
    assert alone is prior
    scale = Scale.of(features)
    assert (scale.into(strong)[0] - scale.into(prior)[0]).abs().max() < 1e-3
    right = (weak.logits(features).argmax(1) == labels).double().mean()
    assert right > 0.9 > (prior.logits(features).argmax(1) == labels).double().mean()


def test_scaling_goes_there_and_back() -> None:
    x, y = some()
    x[:, 3] = 7.0  # does not vary
    features, _ = tensors(x, y)
    scale = Scale.of(features)
    head = Linear(torch.randn(4, 20), torch.randn(4))
    weight, bias = scale.into(head)
    assert torch.allclose((scale(features) @ weight.T + bias).float(), head.logits(features), atol=1e-3)
    assert torch.allclose(scale.out_of(weight, bias).weight, head.weight, atol=1e-5)
    assert scale(features).isfinite().all()
