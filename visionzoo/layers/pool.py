"""Attention pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.linear import apply_linear
from visionzoo.layers.mlp import Mlp


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, then an MLP (MAP head, arXiv 2106.04560): (B, N, D) -> (B, D)."""

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int, *, act: str = "gelu", eps: float = 1e-6) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.latent, std=dim**-0.5)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, mlp_hidden, act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        b, n, dim = x.shape
        q = apply_linear(self.q, self.latent).expand(b, -1, -1).reshape(b, 1, self.num_heads, -1).transpose(1, 2)
        k, v = apply_linear(self.kv, x).reshape(b, n, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 1, dim)
        pooled = apply_linear(self.proj, found)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
