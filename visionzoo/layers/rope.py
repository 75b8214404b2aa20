"""Rotary position embedding for patch grids (arXiv 2104.09864, in two axes).

A table is (..., N, 2 d) for head width d: the sines in the first half of the last axis, the cosines in the second,
as timm keeps it. Pairs of channels that rotate together are neighbours (``interleaved``) or a half apart (``half``).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_pairs(x: Tensor) -> Tensor:
    """(..., d) -> (..., d): each pair of neighbours (a, b) becomes (-b, a)."""
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((-b, a), dim=-1).flatten(-2)


def rotate_half(x: Tensor) -> Tensor:
    """(..., d) -> (..., d): the halves (a, b) become (-b, a)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def apply_rope(x: Tensor, table: Tensor, *, half: bool = False) -> Tensor:
    """Rotate the last tokens of ``x``; tokens before them (class, registers) have no position and stay.

    Args:
        x: (B, H, P + N, d) queries or keys.
        table: (N, 2 d), (H, N, 2 d) or (B, 1, N, 2 d): sines then cosines.
        half: channels rotate with the one half a head away, not with their neighbour.
    """
    sin, cos = table.to(x.dtype).chunk(2, dim=-1)
    prefix = x.shape[-2] - table.shape[-2]
    tail = x[..., prefix:, :] if prefix else x
    tail = tail * cos + (rotate_half(tail) if half else rotate_pairs(tail)) * sin
    return torch.cat((x[..., :prefix, :], tail), dim=-2) if prefix else tail
