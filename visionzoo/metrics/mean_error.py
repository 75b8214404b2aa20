"""The mean of many values and its standard error, over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanAndError(Metric):
    """Mean and standard error (of n values their deviation over the root of n, with n - 1 degrees of freedom).

    :meth:`compute` gives a tensor of the two. The error of fewer than two values is not known, and infinite; so are
    both of none.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    number: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("total", "squares", "number"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add values of any shape."""
        exact = values.detach().double()
        self.total += exact.sum()
        self.squares += exact.square().sum()
        self.number += values.numel()

    def compute(self) -> Tensor:
        """(2,) float32: the mean and its standard error."""
        if self.number < 2:
            mean = self.total if self.number else self.total + torch.inf
            return torch.stack([mean, torch.full_like(mean, torch.inf)]).float()
        mean = self.total / self.number
        variance = (self.squares - self.number * mean.square()).clamp_min(0) / (self.number - 1)
        return torch.stack([mean, (variance / self.number).sqrt()]).float()
