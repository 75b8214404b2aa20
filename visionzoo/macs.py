"""Multiply-adds of a computation, counted where they are the same on every version of torch and every machine.

Attention kernels and fused layers have another operator's name in each version and on each device. So attention takes
torch's plain definition, two matrix products; fused kernels step aside (:mod:`visionzoo.layers.fast_path`); what is
left are matrix products and convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def count_macs(run: Callable[[], Any]) -> int:
    """Multiply-adds of the matrix products and convolutions in ``run()``, attention and backward passes included.

    Works on the meta device as well, where nothing is computed.
    """
    fast = torch.backends.mha.get_fastpath_enabled()  # nn.MultiheadAttention as one operator
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.macs


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None:
            with self:  # in inference mode composite operators arrive whole
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        self.macs += formula(out, args)
        return out


# Of an operator's result and its arguments, in the order of its schema.
def _product(out: Tensor, args: Any) -> int:
    return out.numel() * args[0].shape[-1]


def _added_product(out: Tensor, args: Any) -> int:
    return out.numel() * args[1].shape[-1]


def _convolution(out: Tensor, args: Any) -> int:
    # each output pixel reads a whole kernel; transposed, each input pixel writes one
    image, weight, transposed = args[0], args[1], args[6]
    return (image if transposed else out).numel() * math.prod(weight.shape[1:])


def _convolution_backward(_: Any, args: Any) -> int:
    grad, image, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    return sum(wanted[:2]) * (image if transposed else grad).numel() * math.prod(weight.shape[1:])


_FORMULAS: dict[Any, Callable[[Any, Any], int]] = {
    aten.mm: _product,
    aten.bmm: _product,
    aten.addmm: _added_product,
    aten.baddbmm: _added_product,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
}
