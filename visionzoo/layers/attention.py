"""Multi-head self-attention and its Transformer block, under timm's parameter names.

Legend: B batch, N tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.cpu_attention import packed_attention, takes_packed_attention
from visionzoo.layers.drop_path import DropPath, LayerScale
from visionzoo.layers.fast_path import is_plain
from visionzoo.layers.linear import apply_linear
from visionzoo.layers.rope import apply_rope


class Attention(nn.Module):
    """Self-attention through ``scaled_dot_product_attention``: (B, N, D) -> (B, N, D).

    Args:
        dim: width D, a multiple of ``num_heads``.
        num_heads: H.
        qkv_bias: a bias on queries, keys and values.
        qk_norm: layer norm on each head's queries and keys (arXiv 2302.05442).
        eps: of those norms.
        rotate_half: with ``rope``, channels rotate with the one half a head away, not with their neighbour.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        eps: float = 1e-6,
        rotate_half: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim={dim} must be a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.rotate_half = rotate_half
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        """(B, N, D) -> queries, keys and values side by side, (B, N, 3 D)."""
        return apply_linear(self.qkv, x)

    def heads(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys, values (B, H, N, d), normalised and rotated as the weights want."""
        return self.split(self.project(x), rope)

    def split(self, packed: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, 3 D) of :meth:`project` -> what :meth:`heads` gives."""
        b, n, _ = packed.shape
        q, k, v = packed.reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, rope, half=self.rotate_half), apply_rope(k, rope, half=self.rotate_half)
        return q, k, v

    def forward(self, x: Tensor, rope: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (B, N, D).
            rope: rotation table of :mod:`visionzoo.layers.rope` for the last tokens of the sequence.
            bias: added to the attention logits; broadcasts to (B, H, N, N).
        """
        packed = self.project(x)
        plain_norms = is_plain(self.q_norm, nn.Identity) and is_plain(self.k_norm, nn.Identity)
        if rope is None and bias is None and plain_norms and takes_packed_attention(packed):
            return apply_linear(self.proj, packed_attention(packed, self.num_heads))
        q, k, v = self.split(packed, rope)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return apply_linear(self.proj, out.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, rope: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The attention weights that :meth:`forward` applies, (B, H, N, N); each row sums to one."""
        q, k, _ = self.heads(x, rope)
        logits = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        return (logits if bias is None else logits + bias).softmax(dim=-1)


class QVBiasAttention(Attention):
    """Attention with a bias on queries and values, stored apart: (B, N, D) -> (B, N, D) (BEiT, EVA).

    Keys have none: it would add the same number to all logits of a query, which softmax does not see.
    """

    def __init__(self, dim: int, num_heads: int, *, rotate_half: bool = False) -> None:
        super().__init__(dim, num_heads, qkv_bias=False, rotate_half=rotate_half)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def project(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, 3 D): queries, keys and values; keys have no bias."""
        return apply_linear(self.qkv, x, torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias)))


class Block(nn.Module):
    """Pre-norm Transformer block (arXiv 2010.11929, section 3.1): (B, N, D) -> (B, N, D).

    Args:
        dim: width D.
        attn: any module that maps (B, N, D) and the keyword arguments given to ``forward`` to (B, N, D).
        mlp: any module that maps (B, N, D) to (B, N, D).
        layer_scale: initial value of the per-channel scale; None for none.
        drop_path: stochastic-depth rate of both branches.
        eps: of both norms.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, **position: Any) -> Tensor:
        """
        Args:
            x: (B, N, D).
            position: what the attention takes beside ``x``.
        """
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **position)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class GammaBlock(Block):
    """A block whose layer scale is stored as ``gamma_1`` and ``gamma_2``, as BEiT, EVA and DINOv3 weights have it."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(dim, attn, mlp, drop_path=drop_path, eps=eps)
        for name in ("gamma_1", "gamma_2"):
            scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
            self.register_parameter(name, scale)

    def forward(self, x: Tensor, **position: Any) -> Tensor:
        """(B, N, D) -> the same, each branch scaled by its own gamma."""
        y = self.attn(self.norm1(x), **position)
        x = x + self.drop_path1(y if self.gamma_1 is None else y * self.gamma_1)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else y * self.gamma_2)
