"""Attention for training in bfloat16 or float16 on a CPU, where the backward pass of PyTorch's own kernel is slow.

The forward pass is PyTorch's. The backward pass is plain matrix products in float32, for a few images at a time so that
their attention weights stay in the cache; its own gradient (a gradient penalty) is that of attention written out.
Measured on one core with AMX, forward and backward of 8 x 197 tokens with 16 heads of 32: 35 ms for 67; of 8 x 50
tokens with 12 heads of 64: 6 ms for 20. In float32 PyTorch's kernel is as good.

Legend: B batch, N tokens, H heads, d head width, D = H * d.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from visionzoo.layers.fast_path import is_recorded

#: Attention weights computed at once: 2 MiB in float32, about a core's second-level cache.
CHUNK = 2**19
#: Beyond this many tokens one head's weights alone exceed the cache.
MAX_TOKENS = 1024


def takes_packed_attention(qkv: Tensor) -> bool:
    """Whether :func:`packed_attention` is the better choice for queries, keys and values (B, N, 3 D)."""
    return (
        qkv.device.type == "cpu"
        and qkv.requires_grad
        and torch.is_grad_enabled()
        and qkv.dtype in (torch.bfloat16, torch.float16)
        and 0 < qkv.shape[1] <= MAX_TOKENS
        and type(qkv) is Tensor
        and not is_recorded()
    )


def packed_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention: queries, keys and values side by side (B, N, 3 D) -> (B, N, D)."""
    return _PackedAttention.apply(qkv, num_heads)


def _dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _step(qkv: Tensor, num_heads: int) -> int:
    """Images in a chunk."""
    return min(qkv.shape[0], max(1, CHUNK // (num_heads * qkv.shape[1] ** 2)))


def _buffer(qkv: Tensor, num_heads: int) -> Tensor:
    """Room for the attention weights of a chunk."""
    n = qkv.shape[1]
    return torch.empty(_step(qkv, num_heads) * num_heads, n, n, dtype=_dtype(qkv))


def _chunks(qkv: Tensor, num_heads: int) -> Iterator[slice]:
    batch, step = qkv.shape[0], _step(qkv, num_heads)
    for start in range(0, batch, step):
        yield slice(start, min(start + step, batch))


def _heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """(b, N, parts * D) -> ``parts`` tensors (b * H, N, d), in the type that is computed in."""
    b, n, width = x.shape
    split = x.view(b, n, parts, num_heads, width // (parts * num_heads)).permute(2, 0, 3, 1, 4)
    split = split.to(_dtype(x), memory_format=torch.contiguous_format, copy=True)
    return split.view(parts, b * num_heads, n, -1).unbind(0)


def _join(into: Tensor, part: int, heads: Tensor) -> None:
    """Write (b * H, N, d) to its place in (b, N, parts, H, d)."""
    b, n, _, h, d = into.shape
    into[:, :, part].copy_(heads.view(b, h, n, d).transpose(1, 2))


def _product(buffer: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """``scale * a @ b`` in the first rows of ``buffer``, which stays in the cache from one chunk to the next."""
    out = buffer[: a.shape[0]]
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _math_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """:func:`packed_attention` in operators that torch differentiates as often as one likes."""
    q, k, v = qkv.to(_dtype(qkv)).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2).to(qkv.dtype)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int) -> Tensor:  # type: ignore[override]
        q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        # What scaled_dot_product_attention calls here; its other result, the log of each row's sum, is needed later.
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        out = out.transpose(1, 2).flatten(2)
        ctx.num_heads = num_heads
        ctx.save_for_backward(qkv, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        qkv, out, sums = ctx.saved_tensors
        h = ctx.num_heads
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated (create_graph)
            (result,) = torch.autograd.grad(_math_attention(qkv, h), qkv, grad, create_graph=True)
            return result, None
        b, n, width = qkv.shape
        scale = (width // (3 * h)) ** -0.5
        result = torch.empty_like(qkv)
        places = result.view(b, n, 3, h, width // (3 * h))
        first, second = _buffer(qkv, h), _buffer(qkv, h)
        for chunk in _chunks(qkv, h):
            q, k, v = _heads(qkv[chunk], 3, h)
            (o,), (g,) = _heads(out[chunk], 1, h), _heads(grad[chunk], 1, h)
            part = places[chunk]
            weights = _product(first, q, k.transpose(1, 2), scale)
            weights.sub_(sums[chunk].reshape(-1, n, 1)).exp_()
            _join(part, 2, torch.bmm(weights.transpose(1, 2), g))
            # The gradient of softmax: weights * (g v^T - its mean under the weights), and that mean is g . out.
            slope = _product(second, g, v.transpose(1, 2))
            slope.sub_((o * g).sum(dim=-1, keepdim=True)).mul_(weights)
            _join(part, 0, torch.bmm(slope, k).mul_(scale))
            _join(part, 1, torch.bmm(slope.transpose(1, 2), q).mul_(scale))
        return result, None
