"""Stochastic depth and layer scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch per sample, scaling the survivors (arXiv 1603.09382): (B, ...) -> (B, ...)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same; in training a sample's branch is zero with probability ``rate``, else scaled up."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def drop_path_schedule(rate: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 in the first block to ``rate`` in the last."""
    return [rate * i / (depth - 1) for i in range(depth)] if depth > 1 else [0.0] * depth


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (arXiv 2103.17239): (..., D) -> (..., D)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) times a learned factor (D,)."""
        return x * self.gamma
