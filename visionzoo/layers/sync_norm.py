"""Batch normalisation over the images of all processes.

Legend: B rows of this process, W processes, C channels, * any further axes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SyncNorm(_BatchNorm):
    """A norm whose mean and variance in training are those of the batches of all processes.

    torch's own ``SyncBatchNorm`` has no kernel for the CPU, and is not what timm's norms with an activation are. Every
    process must bring as many rows. Alone, or in eval mode, it is the norm itself, and its keys are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, *) -> (B, C, *)."""
        if not self.training or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self.finish(self._normalised(input).to(input.dtype))

    def finish(self, normalised: Tensor) -> Tensor:
        """What follows the norm: (B, C, *) -> (B, C, *)."""
        return normalised

    def _normalised(self, input: Tensor) -> Tensor:
        rows = input if input.dtype == torch.float64 else input.float()
        axes = [axis for axis in range(rows.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(rows.ndim)]
        count = rows.numel() // rows.shape[1] * dist.get_world_size()
        mean = _SumOfAll.apply(rows.sum(axes)) / count
        centred = rows - mean.view(shape)
        variance = _SumOfAll.apply(centred.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean), share)
                self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), share)
        scale = (variance + self.eps).rsqrt()
        if self.weight is None:
            return centred * scale.view(shape)
        return centred * (scale * self.weight).view(shape) + self.bias.view(shape)


class SyncNorm1d(_SyncNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` over all processes, (B, C) or (B, C, L)."""


class SyncNorm2d(_SyncNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over all processes, (B, C, H, W)."""


class SyncNorm3d(_SyncNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` over all processes, (B, C, D, H, W)."""


@cache
def _classes() -> dict[type[_BatchNorm], type[_SyncNorm]]:
    """The synchronised class of every norm that has one."""
    from timm.layers import BatchNormAct2d

    class SyncNormAct2d(_SyncNorm, BatchNormAct2d):
        """timm's norm with an activation, over all processes."""

        def finish(self, normalised: Tensor) -> Tensor:
            """Drop and activate (B, C, H, W)."""
            return self.act(self.drop(normalised))

    pairs: dict[type[_BatchNorm], type[_SyncNorm]] = {
        nn.BatchNorm1d: SyncNorm1d,
        nn.BatchNorm2d: SyncNorm2d,
        nn.BatchNorm3d: SyncNorm3d,
    }
    return pairs | {BatchNormAct2d: SyncNormAct2d}


def synchronise(model: nn.Module) -> list[tuple[_BatchNorm, type[_BatchNorm]]]:
    """Have every BatchNorm of a model take the images of all processes: each becomes, in place, its synchronised
    class, with its own tensors, hooks and keys.

    Returns:
        what was changed, with the class that it had.

    Raises:
        ValueError: naming a kind of BatchNorm that has none; nothing is changed then.
    """
    over_all = (_SyncNorm, nn.SyncBatchNorm)  # already
    norms = [(m, type(m)) for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, over_all)]
    if unknown := sorted({kind.__name__ for _, kind in norms if kind not in _classes()}):
        known = ", ".join(kind.__name__ for kind in _classes())
        raise ValueError(f"sync_batchnorm does not know {', '.join(unknown)} (it knows {known}); leave it out")
    for module, kind in norms:
        object.__setattr__(module, "__class__", _classes()[kind])
    return norms


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
