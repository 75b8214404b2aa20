"""Self-attention within windows, with a bias that depends on the distance of two tokens.

Legend: M windows of all images together, N = s * s tokens of a window of side s, D width, H heads, d head width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.attention import Attention
from visionzoo.layers.linear import apply_linear
from visionzoo.layers.relative_position import resample_relative_table
from visionzoo.layers.window import cacheable


def relative_index(window: int, like: Tensor) -> Tensor:
    """For each pair of a window's tokens its row in a table of relative positions: (N * N,) int64.

    The table is in raster order of (row distance, column distance), query minus key, each from ``1 - s`` to ``s - 1``.
    The index is on the device of ``like``.
    """
    return (_cached_index if cacheable(like) else _relative_index)(window, like.device)


@lru_cache(maxsize=16)
def _cached_index(window: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not serve a training step later
        return _relative_index(window, device)


def _relative_index(window: int, device: torch.device) -> Tensor:
    places = torch.arange(window * window, device=device)
    rows, cols = places // window, places % window
    down = rows[:, None] - rows[None, :] + window - 1
    across = cols[:, None] - cols[None, :] + window - 1
    return (down * (2 * window - 1) + across).flatten()


class WindowAttention(Attention):
    """Attention with a learned bias per relative position (arXiv 2103.14030, equation 4): (M, N, D) -> (M, N, D).

    Args:
        dim: width D, a multiple of ``num_heads``.
        num_heads: H.
        window: side s.
        qkv_bias: a bias on queries, keys and values.
    """

    def __init__(self, dim: int, num_heads: int, window: int, *, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        self.window = window
        self._build_bias()

    def _build_bias(self) -> None:
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * self.window - 1) ** 2, self.num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias(self) -> Tensor:
        """The bias of each pair of tokens, (H, N, N)."""
        table = self.relative_position_bias_table
        n = self.window**2
        return table.t().index_select(1, relative_index(self.window, table)).view(self.num_heads, n, n)

    def masked_bias(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Bias and mask in one: (n, H, N, N), n = 1 without a mask; ``mask`` is (n, N, N)."""
        bias = self.bias().to(dtype).unsqueeze(0)
        return bias if mask is None else bias + mask.to(dtype).unsqueeze(1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """
        Args:
            x: (M, N, D), the n windows of each image side by side.
            mask: (n, N, N), added to the logits of each image's windows; None for none.
        """
        q, k, v = self.heads(x)
        bias = self.masked_bias(mask, q.dtype)
        if bias.requires_grad and q.device.type == "cpu" and not torch.jit.is_tracing():
            # No fused kernel on a CPU gives the gradient of a bias, and the fallback computes bf16 in float32: at 0.6
            # times the speed of this.
            out = self._softmax(q, k, bias) @ v
        else:
            if mask is not None:
                bias = bias.expand(x.shape[0] // mask.shape[0], *bias.shape).flatten(0, 1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return apply_linear(self.proj, out.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The attention weights that :meth:`forward` applies, (M, H, N, N); each row sums to one."""
        q, k, _ = self.heads(x)
        return self._softmax(q, k, self.masked_bias(mask, q.dtype))

    def _softmax(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        logits = (q * self.scale) @ k.transpose(-2, -1)
        return (logits.view(-1, *bias.shape) + bias).flatten(0, 1).softmax(dim=-1)

    @property
    def scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return self.head_dim**-0.5


class CosineWindowAttention(WindowAttention):
    """Cosine attention, with a bias from a network on log-spaced distances: (M, N, D) -> (M, N, D).

    Swin v2, arXiv 2111.09883, sections 3.2 and 3.3.

    Args:
        dim: width D, a multiple of ``num_heads``.
        num_heads: H.
        window: side s.
        pretrained_window: side of the window whose distances the network was trained on; None for ``window``.
    """

    def __init__(self, dim: int, num_heads: int, window: int, *, pretrained_window: int | None = None) -> None:
        super().__init__(dim, num_heads, window, qkv_bias=False)
        self.pretrained_window = pretrained_window or window
        # Keys have no bias: it would only turn them all.
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def _build_bias(self) -> None:
        self.logit_scale = nn.Parameter(torch.full((self.num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, self.num_heads, bias=False))

    def distances(self) -> Tensor:
        """Log-spaced relative positions, ((2 s - 1)^2, 2), the pretrained window's in [-1.06, 1.06] (equation 4)."""
        weight = self.logit_scale  # not the network's own, which may be quantised
        steps = torch.arange(1 - self.window, self.window, device=weight.device, dtype=torch.float32)
        steps = steps * (8.0 / max(self.pretrained_window - 1, 1))
        steps = steps.sign() * (steps.abs() + 1.0).log2() / 3.0
        side = steps.shape[0]
        grid = torch.stack((steps[:, None].expand(-1, side), steps[None, :].expand(side, -1)), dim=-1)
        return grid.view(-1, 2).to(weight.dtype)

    def bias(self) -> Tensor:
        """(H, n, n), n = s^2 tokens of a window, in (0, 16): a small network of the distance."""
        table = 16 * torch.sigmoid(self.cpb_mlp(self.distances()))
        n = self.window**2
        return table.t().index_select(1, relative_index(self.window, table)).view(self.num_heads, n, n)

    def project(self, x: Tensor) -> Tensor:
        """(M, n, D) -> (M, n, 3 D): queries, keys and values; keys have no bias."""
        return apply_linear(self.qkv, x, torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias)))

    def heads(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(M, n, D) -> queries, keys and values (M, H, n, d); products of the first two are scaled cosines."""
        del rope
        m, n, _ = x.shape
        qkv = self.project(x).view(m, n, 3, self.num_heads, self.head_dim)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp().flatten()
        scale = torch.stack((scale, torch.ones_like(scale))).unsqueeze(-1)
        # A padded token's key is exactly zero, so the length needs a floor.
        qk = qk * (scale / qk.norm(dim=-1, keepdim=True).clamp_min(1e-12)).to(qk.dtype)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v.transpose(1, 2)

    @property
    def scale(self) -> float:
        """1: the learned scale is in the queries already."""
        return 1.0  # the learned scale is in the queries already


def resample_bias_table(table: Tensor, new_window: int) -> Tensor:
    """Resample a table of relative positions to another window: ((2 s - 1)^2, H) -> ((2 s' - 1)^2, H).

    Entries keep their distance near the centre and are spaced geometrically towards the ends, with linear interpolation
    between, as BEiT's fine-tuning does and timm after it. The stored window is taken to be square.

    Raises:
        ValueError: if the table's length is not the square of an odd number above 1.
    """
    old = math.isqrt(table.shape[0])
    if old * old != table.shape[0] or old % 2 == 0 or old < 3:
        raise ValueError(
            f"a bias table of {table.shape[0]} entries fits no square window of two or more tokens a side; "
            f"(2 s - 1)^2 are needed"
        )
    side = (old + 1) // 2
    return resample_relative_table(table, (new_window, new_window), old_grid=(side, side))
