"""Feed-forward layers of a Transformer block, under timm's parameter names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.fast_path import is_plain
from visionzoo.layers.linear import apply_linear, linear, takes_fused_kernel


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the approximation OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """``x sigmoid(1.702 x)`` of x of any shape."""
        return x * torch.sigmoid(1.702 * x)


class TanhGELU(nn.GELU):
    """The tanh approximation of GELU, JAX's default (SigLIP)."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


#: Activations by the name a model's configuration records.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": TanhGELU,
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
}


class Mlp(nn.Module):
    """Two linear layers with an activation between them: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu", *, norm: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = ACTIVATIONS[act]()
        self.norm = nn.LayerNorm(hidden_dim, eps=eps) if norm else nn.Identity()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return apply_linear(self.fc2, self.norm(linear_act(x, self.fc1, self.act)))


def linear_act(x: Tensor, fc1: nn.Module, act: nn.Module) -> Tensor:
    """``act(fc1(x))``, the first half of an MLP, in one kernel where that pays: (..., D) -> (..., E)."""
    if is_plain(fc1, nn.Linear) and is_plain(act, nn.GELU, TanhGELU) and takes_fused_kernel(x, fc1.weight, gelu=True):  # type: ignore[arg-type]
        return linear(x, fc1.weight, fc1.bias, gelu=act.approximate)  # type: ignore[arg-type]
    return act(apply_linear(fc1, x))


class SwiGLUPacked(nn.Module):
    """SwiGLU (arXiv 2002.05202) with gate and value in one matrix: (..., D) -> (..., D). The gate is the first half."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D); gate and value come from one layer."""
        gate, value = apply_linear(self.fc1, x).chunk(2, dim=-1)
        return apply_linear(self.fc2, F.silu(gate) * value)


class SwiGLU(nn.Module):
    """SwiGLU with gate and value as two matrices, optionally with a norm before the output: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden_dim: int, *, norm: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden_dim)
        self.fc1_x = nn.Linear(dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=eps) if norm else nn.Identity()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gated = F.silu(apply_linear(self.fc1_g, x)) * apply_linear(self.fc1_x, x)
        return apply_linear(self.fc2, self.norm(gated))
