"""A linear classifier on frozen features: multinomial logistic regression, pulled towards zero or towards a prior.

Legend: N images, D width of the features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: What a prior that is trusted wholly is called among the strengths of a penalty.
PRIOR_ALONE = float("inf")


@dataclass(frozen=True)
class Linear:
    """``features @ weight.T + bias``, on features as the backbone gives them."""

    weight: Tensor  #: (K, D) float32
    bias: Tensor  #: (K,) float32

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        return features.float() @ self.weight.T + self.bias


@dataclass(frozen=True)
class Scale:
    """Features brought to mean 0 and spread 1, which a penalty on all weights alike takes for granted."""

    mean: Tensor  #: (D,) float64
    spread: Tensor  #: (D,) float64, above 0

    @classmethod
    def of(cls, features: Tensor) -> Scale:
        """That of (N, D) features. What does not vary is left as it is."""
        values = features.double()
        spread = values.std(0, correction=0)
        return cls(values.mean(0), torch.where(spread > 1e-6 * spread.mean().clamp_min(1e-12), spread, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D) float64."""
        return (features.double() - self.mean) / self.spread

    def into(self, prior: Linear) -> tuple[Tensor, Tensor]:
        """(K, D) and (K,) float64 that do on scaled features what ``prior`` does on plain ones."""
        weight = prior.weight.double()
        return weight * self.spread, prior.bias.double() + weight @ self.mean

    def out_of(self, weight: Tensor, bias: Tensor) -> Linear:
        """The inverse of :meth:`into`."""
        plain = weight / self.spread
        return Linear(plain.float(), (bias - plain @ self.mean).float())


def fit_path(
    features: Tensor, labels: Tensor, classes: int, strengths: tuple[float, ...], prior: Linear | None = None
) -> list[Linear]:
    """One classifier for each strength of the penalty.

    Each minimises the mean cross-entropy plus ``strength / 2`` times the squared distance of its weights, on scaled
    features, from those of the prior. With none that is scikit-learn's ``LogisticRegression(C=1 / (strength * N))``.
    The strongest is fitted first, and each starts from the one before.

    Args:
        features: (N, D) float32.
        labels: (N,) int64 in [0, K).
        classes: K.
        strengths: of the penalty, above 0; ``PRIOR_ALONE`` for the prior itself.
        prior: what is known beforehand, such as a head made of texts; None for zeros.
    """
    scale = Scale.of(features)
    x = scale(features)
    start = prior or Linear(torch.zeros(classes, x.shape[1]), torch.zeros(classes))
    weight0, bias0 = scale.into(start)
    weight, bias = weight0.clone(), bias0.clone()
    if prior is None:  # the share of each class, smoothed: what is known before looking
        bias = (torch.bincount(labels, minlength=classes).double() + 1).log()
        bias -= bias.mean()
    found: dict[float, Linear] = {}
    for strength in sorted(strengths, reverse=True):
        if strength == PRIOR_ALONE:
            found[strength] = start
            continue
        weight, bias = _minimise(x, labels, weight, bias, weight0, strength)
        found[strength] = scale.out_of(weight, bias)
    return [found[strength] for strength in strengths]


def _minimise(
    x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, weight0: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """From (K, D) and (K,), by L-BFGS."""
    weight, bias = weight.clone().requires_grad_(True), bias.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=100,
        history_size=20,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + 0.5 * strength * (weight - weight0).square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def tensors(features: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """(N, D) float32 and (N,) int64, from arrays."""
    return torch.from_numpy(np.ascontiguousarray(features, np.float32)), torch.from_numpy(labels.astype(np.int64))
