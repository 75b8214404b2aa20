"""Absolute position tables: sine-cosine values and resampling to another grid.

Legend: (h, w) token grid, P prefix tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.layers.fast_path import is_open


def sincos_2d(grid_size: tuple[int, int], dim: int, *, prefix_tokens: int = 0, temperature: float = 10000.0) -> Tensor:
    """The fixed table of MAE and MoCo v3: (1, P + h * w, D) float32, zeros for the prefix tokens.

    The first half of D encodes the column, the second the row, each half sines then cosines, as in the reference
    implementation of MAE (``util/pos_embed.py``), which builds its grid with the width first.

    Raises:
        ValueError: if ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a sine-cosine table needs a width that is a multiple of 4, got {dim}")
    h, w = grid_size
    # float64 as in the reference, so that the float32 values agree to the last bit
    omega = 1.0 / temperature ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4.0))
    rows, cols = torch.meshgrid(
        torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij"
    )
    parts = []
    for axis in (cols, rows):
        angles = axis.reshape(-1, 1) * omega
        parts += [angles.sin(), angles.cos()]
    table = torch.cat(parts, dim=1).float()
    return torch.cat((torch.zeros(prefix_tokens, dim), table)).unsqueeze(0)


def resample_positions(
    table: Tensor, new_grid: tuple[int, int], *, old_grid: tuple[int, int], prefix_tokens: int = 0
) -> Tensor:
    """Resample a table of absolute positions: (1, P + h * w, D) -> (1, P + h' * w', D).

    Bicubic with antialiasing in float32, as timm's ``resample_abs_pos_embed``; the prefix entries are kept.
    """
    if not is_open(*new_grid) and new_grid == old_grid:
        return table
    prefix, grid = table[:, :prefix_tokens], table[:, prefix_tokens:]
    dim = table.shape[-1]
    grid = grid.float().reshape(1, *old_grid, dim).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new_grid, mode="bicubic", antialias=True)
    grid = grid.permute(0, 2, 3, 1).reshape(1, -1, dim).to(table.dtype)
    return torch.cat((prefix, grid), dim=1)


def stored_grid(tokens: int, own: tuple[int, int], said: tuple[int, int] | None = None) -> tuple[int, int]:
    """The (h, w) grid of a stored table with ``tokens`` cells.

    The one that was ``said`` with the weights, where it has as many; else the model's ``own``, where that has; else the
    square one.

    Raises:
        ValueError: if none of these has so many, so that the grid cannot be known.
    """
    for grid in (said, own):
        if grid is not None and grid[0] * grid[1] == tokens:
            return grid
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(
            f"a position table with {tokens} patch tokens is not square, and nothing beside the weights says their "
            "image size, so its grid is not known; load them from their run folder, or at the size they have"
        )
    return side, side
