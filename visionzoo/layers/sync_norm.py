"""Batch normalisation over the images of all processes.

Legend: B rows of this process, W processes, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose mean and variance in training are those of the batches of all processes.

    torch's own ``SyncBatchNorm`` has no kernel for the CPU. Every process must bring as many rows. Alone, or in eval
    mode, it is ``nn.BatchNorm1d`` itself, and its keys are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if not self.training or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            rows = input if input.dtype == torch.float64 else input.float()
            count = len(rows) * dist.get_world_size()
            mean = _SumOfAll.apply(rows.sum(0)) / count
            centred = rows - mean
            variance = _SumOfAll.apply(centred.square().sum(0)) / count
            if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
                with torch.no_grad():
                    self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                    self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                    self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), self.momentum)
            scale = (variance + self.eps).rsqrt()
            if self.weight is not None:
                return (centred * (scale * self.weight) + self.bias).to(input.dtype)
            return (centred * scale).to(input.dtype)


class _SumOfAll(torch.autograd.Function):
    """The sum over processes; each sends its gradient back to all."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad
