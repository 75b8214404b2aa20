"""The attention of ViTDet and SAM (arXiv 2203.16527): windowed or global, relative positions decomposed by axis.

The logit of query (i, j) and key (k, l) gains ``q · Rh[i - k] + q · Rw[j - l]`` (arXiv 2112.01526, equation 4), with q
before it is scaled.

Legend: B batch, D width, (h, w) token grid, N = h * w, s window side, n windows per image, M = B * n (or B), H heads,
d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.attention import Attention
from visionzoo.layers.fast_path import is_open
from visionzoo.layers.linear import apply_linear
from visionzoo.layers.window import from_windows, to_windows, window_layout


def resample_distances(table: Tensor, size: int) -> Tensor:
    """Resample a table of distances to another axis length, linearly as the references: (L, d) -> (2 size - 1, d)."""
    if not is_open(size) and table.shape[0] == 2 * size - 1:  # in a graph of any size the same length is resampled too,
        return table  # which changes nothing
    return F.interpolate(table.t().unsqueeze(0), size=2 * size - 1, mode="linear")[0].t()


def distance_vectors(table: Tensor, size: int) -> Tensor:
    """The entry of each pair (query, key) on an axis of ``size`` places: (L, d) -> (size, size, d)."""
    places = torch.arange(size, device=table.device)
    index = places[:, None] - places[None, :] + size - 1
    return resample_distances(table, size).index_select(0, index.flatten()).view(size, size, -1)


class DecomposedAttention(Attention):
    """Self-attention with decomposed relative positions: (B, N, D) -> (B, N, D).

    Args:
        dim: width D, a multiple of ``num_heads``.
        num_heads: H.
        size: (h, w) that the tables are made for; of the window in windowed blocks, else of the grid.
        windowed: attend within windows of ``size``; a grid that they do not divide is padded with zeros at the right
            and bottom, which other tokens see.
    """

    def __init__(
        self, dim: int, num_heads: int, size: tuple[int, int], *, windowed: bool = False, qkv_bias: bool = True
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        self.window = size[0] if windowed else 0
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size[0] - 1, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size[1] - 1, self.head_dim))

    def position_terms(self, q: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Each query's logit for each key row and for each key column: (M, H, N, d) -> (M, H, N, h), (M, H, N, w)."""
        m, heads, n, d = q.shape
        h, w = grid
        # One matrix product per query row (or column), over all heads.
        places = q.reshape(m * heads, h, w, d)
        rows = places.transpose(0, 1).reshape(h, -1, d) @ distance_vectors(self.rel_pos_h, h).to(q.dtype).transpose(
            1, 2
        )
        cols = places.permute(2, 0, 1, 3).reshape(w, -1, d) @ distance_vectors(self.rel_pos_w, w).to(q.dtype).mT
        rows = rows.view(h, m * heads, w, h).transpose(0, 1)
        cols = cols.view(w, m * heads, h, w).permute(1, 2, 0, 3)
        return rows.reshape(m, heads, n, h), cols.reshape(m, heads, n, w)

    def position_bias(self, q: Tensor, grid: tuple[int, int]) -> Tensor:
        """The sum of both terms for each pair of tokens: (M, H, N, d) -> (M, H, N, N)."""
        rows, cols = self.position_terms(q, grid)
        return (rows.unsqueeze(-1) + cols.unsqueeze(-2)).flatten(-2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """(M, H, N, d) queries, keys, values of a whole (h, w) grid -> (M, H, N, d)."""
        # Flash kernels take no bias. Measured on one CPU core at 64 x 64: through channels, bfloat16 is 1.8 times as
        # fast, float32 0.7 times, since there the longer products cost more than the bias.
        if q.is_cuda or q.dtype in (torch.bfloat16, torch.float16):
            return self._through_channels(q, k, v, grid)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.position_bias(q, grid))

    def _through_channels(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """The same without an (N, N) bias.

        Both terms become extra channels of the queries; the keys' one-hot row and column pick theirs out of them, so
        that the plain product of the two is the whole logit.
        """
        h, w = grid
        rows, cols = self.position_terms(q, grid)
        spare = -(self.head_dim + h + w) % 8  # kernels want a multiple of 8
        picks = torch.cat(
            (
                torch.eye(h, dtype=k.dtype, device=k.device).repeat_interleave(w, dim=0),
                torch.eye(w, dtype=k.dtype, device=k.device).repeat(h, 1),
                torch.zeros(h * w, spare, dtype=k.dtype, device=k.device),
            ),
            dim=-1,
        )
        picks = picks.expand(*k.shape[:2], -1, -1)
        parts = [q * self.head_dim**-0.5, rows, cols]
        if spare:
            parts.append(q.new_zeros(*q.shape[:3], spare))
        out = F.scaled_dot_product_attention(
            torch.cat(parts, dim=-1), torch.cat((k, picks), dim=-1), F.pad(v, (0, h + w + spare)), scale=1.0
        )
        return out[..., : self.head_dim]

    def forward(self, x: Tensor, grid_size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """
        Args:
            x: (B, N, D) in raster order.
            grid_size: (h, w).
        """
        if not self.window:
            q, k, v = self.heads(x)
            return apply_linear(self.proj, self._attend(q, k, v, grid_size).transpose(1, 2).flatten(2))
        layout = window_layout(grid_size, self.window, 0, x)
        windows = to_windows(x.view(x.shape[0], *grid_size, -1), layout)
        q, k, v = self.heads(windows)
        out = self._attend(q, k, v, (self.window, self.window)).transpose(1, 2).flatten(2)
        # The projection comes after the padding is gone: less work, same numbers.
        return apply_linear(self.proj, from_windows(out, layout).flatten(1, 2))

    def weights(self, x: Tensor, grid_size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """The attention weights that :meth:`forward` applies; each row sums to one.

        (B, H, N, N), or in windows (B, n, H, s * s, s * s).
        """
        grid = (self.window, self.window) if self.window else grid_size
        if self.window:
            layout = window_layout(grid_size, self.window, 0, x)
            x = to_windows(x.view(x.shape[0], *grid_size, -1), layout)
        q, k, _ = self.heads(x)
        maps = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1) + self.position_bias(q, grid)).softmax(dim=-1)
        return maps.unflatten(0, (-1, layout.num_windows)) if self.window else maps
