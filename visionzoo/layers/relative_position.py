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


#: Halvings after which the ratio of the steps is known to 1e-6, as BEiT's search goes.
_HALVINGS = 19


def _geometric_steps(old: int, reach: Tensor) -> Tensor:
    """Places of ``old`` (odd) entries on an axis that ends at ``reach``, a float64 number: 0 in the middle, ±1, then
    geometric steps to the ends. (old,) float64.

    The search has a fixed number of steps, all of them operators, so that a graph finds the ratio of any size.
    """
    count = old // 2
    low, high = torch.full_like(reach, 1.01), torch.full_like(reach, 1.5)
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        beyond = (1 - ratio**count) / (1 - ratio) > reach
        low, high = torch.where(beyond, low, ratio), torch.where(beyond, ratio, high)
    steps = (ratio ** torch.arange(count, dtype=reach.dtype, device=reach.device)).cumsum(0)
    return torch.cat((-steps.flip(0), torch.zeros_like(steps[:1]), steps))


def _build_mixing(old: int, new: int, device: torch.device) -> Tensor:
    if old == 1:
        return torch.ones(new, 1, device=device)
    target = torch.arange(new) - new // 2
    source = _geometric_steps(old, target[-1].double()).float()
    target = target.float()
    right = (source < target.unsqueeze(1)).sum(1).clamp(1, old - 1)
    share = ((target - source[right - 1]) / (source[right] - source[right - 1])).clamp(0, 1).unsqueeze(1)
    entry, right = torch.arange(old), right.unsqueeze(1)
    return ((entry == right) * share + (entry == right - 1) * (1 - share)).to(device)


def _build_index(grid: tuple[int, int], device: torch.device) -> Tensor:
    h, w = grid
    rows = torch.arange(h, device=device).unsqueeze(1).expand(h, w).reshape(-1)
    cols = torch.arange(w, device=device).unsqueeze(0).expand(h, w).reshape(-1)
    down, across = rows[:, None] - rows[None, :] + h - 1, cols[:, None] - cols[None, :] + w - 1
    patches = down * (2 * w - 1) + across
    count = patches[-1, 0].view(1, 1) + 1  # the greatest; not a number, which no graph could fill in
    to_class = (count + 1).expand(h * w, 1)
    of_class = torch.cat((count + 2, count.expand(1, h * w)), dim=1)
    return torch.cat((of_class, torch.cat((to_class, patches), dim=1)))


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
    same = None  # in a graph of any size: whether it is the table's own, where the steps would be a little over 1
    if is_open(*new_grid):
        off = [torch.arange(n, device=table.device)[-1] + 1 - o for n, o in zip(new_grid, old_grid, strict=True)]
        same = (off[0] == 0) & (off[1] == 0)
    for axis in (1, 2):
        old, new = 2 * old_grid[axis - 1] - 1, 2 * new_grid[axis - 1] - 1
        mix = _cached_mixing(old, new, table.device) if cacheable(table) else _build_mixing(old, new, table.device)
        if same is not None:
            exact = torch.arange(new, device=mix.device).unsqueeze(1) == torch.arange(old, device=mix.device)
            mix = torch.where(same, exact.to(mix), mix)
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
