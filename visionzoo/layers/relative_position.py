"""Attention with a learned bias per relative position, at any grid size, and the resampling of its tables.

A table has a row for each pair (row distance, column distance), query minus key, in raster order from
``-(h - 1), -(w - 1)`` to ``h - 1, w - 1``: (2 h - 1) (2 w - 1) rows for a (h, w) grid, then rows for pairs with the
class token, if any.

Legend: B batch, H heads, D width, N = h * w patch tokens, T = 1 + N with the class token, n visible patches.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.attention import QVBiasAttention
from visionzoo.layers.fast_path import is_open
from visionzoo.layers.linear import apply_linear
from visionzoo.layers.window import cacheable

#: Rows at the end of BEiT's table: class token to patch, patch to class token, class token to itself.
CLASS_ROWS = 3


def _geometric_steps(old: int, new: int) -> list[float]:
    """Places of ``old`` (odd) entries on an axis of ``new``: 0 in the middle, ±1, then geometric steps to the ends."""
    count, reach = old // 2, new // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    steps, place = [], 1.0
    for i in range(count):
        steps.append(place)
        place += ratio ** (i + 1)
    return [-p for p in reversed(steps)] + [0.0, *steps]


def _build_mixing(old: int, new: int, device: torch.device) -> Tensor:
    if old == 1:
        return torch.ones(new, 1, device=device)
    source = torch.tensor(_geometric_steps(old, new))
    target = torch.arange(new, dtype=source.dtype) - new // 2
    right = torch.searchsorted(source, target).clamp(1, old - 1)
    share = ((target - source[right - 1]) / (source[right] - source[right - 1])).clamp(0, 1)
    mix = torch.zeros(new, old).scatter(1, right[:, None], share[:, None])
    return mix.scatter(1, right[:, None] - 1, 1 - share[:, None]).to(device)


def _build_index(grid: tuple[int, int], device: torch.device) -> Tensor:
    h, w = grid
    places = torch.arange(h * w, device=device)
    rows, cols = places // w, places % w
    down, across = rows[:, None] - rows[None, :] + h - 1, cols[:, None] - cols[None, :] + w - 1
    patches = down * (2 * w - 1) + across
    count = (2 * h - 1) * (2 * w - 1)
    index = F.pad(patches, (1, 0, 1, 0), value=count + 1)
    index[0] = count
    index[0, 0] = count + 2
    return index


# What depends on the size alone is kept for the next forward pass. A compiled graph builds its own (a constant of the
# graph); traced or fake tensors must not get into the cache, and an inference tensor could not serve a training step.
@lru_cache(maxsize=64)
def _cached_mixing(old: int, new: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _build_mixing(old, new, device)


@lru_cache(maxsize=16)
def _cached_index(grid: tuple[int, int], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _build_index(grid, device)


def class_relative_index(grid: tuple[int, int], like: Tensor) -> Tensor:
    """The row in BEiT's table of each pair (query, key) of class token and patches of a (h, w) grid: (T, T) int64."""
    return _cached_index(grid, like.device) if cacheable(like) else _build_index(grid, like.device)


def resample_relative_table(
    table: Tensor, new_grid: tuple[int, int], *, old_grid: tuple[int, int], extra_rows: int = 0
) -> Tensor:
    """Resample a table of relative positions: ((2 h - 1) (2 w - 1) + extra, H) -> the same for another grid (h', w').

    Entries keep their distance near the centre and are spaced geometrically towards the ends, with linear interpolation
    between, as BEiT's fine-tuning does and timm after it. The extra rows at the end are kept.
    """
    if not is_open(*new_grid) and new_grid == old_grid:
        return table
    rows, extra = table[: table.shape[0] - extra_rows], table[table.shape[0] - extra_rows :]
    wide = rows.double() if rows.dtype == torch.float64 else rows.float()
    for axis in (1, 2):
        old, new = 2 * old_grid[axis - 1] - 1, 2 * new_grid[axis - 1] - 1
        mix = _cached_mixing(old, new, table.device) if cacheable(table) else _build_mixing(old, new, table.device)
        shape = (2 * old_grid[0] - 1, -1, table.shape[1]) if axis == 1 else (2 * new_grid[0] - 1, old, table.shape[1])
        wide = torch.einsum("no,oah->nah" if axis == 1 else "no,aoh->anh", mix.to(wide.dtype), wide.reshape(shape))
    return torch.cat((wide.reshape(-1, table.shape[1]).to(table.dtype), extra))


class RelativeBiasAttention(QVBiasAttention):
    """BEiT's attention (arXiv 2106.08254): a learned bias per head and relative position, class token included.

    Args:
        dim: width D, a multiple of ``num_heads``.
        num_heads: H.
        grid_size: (h, w) that the table is made for; other grids resample it on the fly.
    """

    def __init__(self, dim: int, num_heads: int, grid_size: tuple[int, int]) -> None:
        super().__init__(dim, num_heads)
        self.grid_size = grid_size
        rows = (2 * grid_size[0] - 1) * (2 * grid_size[1] - 1) + CLASS_ROWS
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))

    def position_bias(self, grid_size: tuple[int, int], keep: Tensor | None = None) -> Tensor:
        """What is added to the logits: (1, H, T, T), or (B, H, 1 + n, 1 + n) of the visible patches ``keep`` (B, n)."""
        table = resample_relative_table(
            self.relative_position_bias_table, grid_size, old_grid=self.grid_size, extra_rows=CLASS_ROWS
        )
        index = class_relative_index(grid_size, table).unsqueeze(0)
        if keep is not None:
            seen = F.pad(keep + 1, (1, 0))
            index = index[0][seen.unsqueeze(2), seen.unsqueeze(1)]
        bias = table.t().index_select(1, index.flatten())
        return bias.view(self.num_heads, *index.shape).transpose(0, 1)

    def forward(  # type: ignore[override]
        self, x: Tensor, grid_size: tuple[int, int], keep: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            x: (B, T, D), the class token first; or (B, 1 + n, D).
            grid_size: (h, w) of the whole image.
            keep: (B, n) raster indices of the patches in ``x``; None for all.
        """
        q, k, v = self.heads(x)
        bias = self.position_bias(grid_size, keep).to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return apply_linear(self.proj, out.transpose(1, 2).flatten(2))

    def weights(  # type: ignore[override]
        self, x: Tensor, grid_size: tuple[int, int], keep: Tensor | None = None
    ) -> Tensor:
        """The attention weights that :meth:`forward` applies, (B, H, T, T); each row sums to one."""
        q, k, _ = self.heads(x)
        logits = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        return (logits + self.position_bias(grid_size, keep).to(q.dtype)).softmax(dim=-1)
