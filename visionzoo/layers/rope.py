"""Rotary position embedding for patch grids (arXiv 2104.09864, in two axes).

A table is (..., N, 2 d) for head width d: the sines in the first half of the last axis, the cosines in the second,
as timm keeps it. Pairs of channels that rotate together are neighbours (interleaved) or a half apart (``half``).

Legend: B batch, H heads, N patch tokens of a (h, w) grid in raster order, P prefix tokens, d head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from visionzoo.layers.window import cacheable

COORDINATES = ("index", "centered")
AXES = ("yx", "xy")


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """How a patch's place in the grid becomes angles.

    ``coordinates`` are ``index`` (0, 1, 2, ...) or ``centered`` (the middle of each patch, from -1 to 1 over each side
    of the image, in full turns: DINOv3, arXiv 2508.10104).
    """

    coordinates: str = "index"
    axes: str = "yx"  #: the axis that the first half of the angles belongs to comes first
    temperature: float = 10000.0  #: ratio of the longest period to the shortest
    half: bool = False  #: channels rotate with the one half a head away, not with their neighbour
    reference_grid: tuple[int, int] | None = None  #: (h, w) that every grid's index coordinates are scaled to
    learned: bool = False  #: each head of each block has its own learned frequencies (RoPE-Mixed, arXiv 2403.13298)

    def __post_init__(self) -> None:
        for name, allowed in (("coordinates", COORDINATES), ("axes", AXES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"RopeSpec.{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")


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

    The rotation is computed in the wider of the two dtypes, the result has that of ``x``.

    Args:
        x: (B, H, P + N, d) queries or keys.
        table: (N, 2 d), (H, N, 2 d), (B, 1, N, 2 d) or (B, H, N, 2 d): sines then cosines.
        half: channels rotate with the one half a head away, not with their neighbour.
    """
    sin, cos = table.chunk(2, dim=-1)
    prefix = x.shape[-2] - table.shape[-2]
    tail = x[..., prefix:, :] if prefix else x
    tail = (tail * cos + (rotate_half(tail) if half else rotate_pairs(tail)) * sin).to(x.dtype)
    return torch.cat((x[..., :prefix, :], tail), dim=-2) if prefix else tail


def grid_coordinates(spec: RopeSpec, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Coordinates of each patch of a (h, w) grid: (N, 2) float32, in the order of ``spec.axes``."""
    lines = []
    for axis, size in enumerate(grid):
        line = torch.arange(size, device=device, dtype=torch.float32)
        if spec.coordinates == "centered":
            line = 2.0 * ((line + 0.5) / size) - 1.0
        elif spec.reference_grid is not None:
            line = line / size * spec.reference_grid[axis]
        lines.append(line)
    y, x = torch.meshgrid(*lines, indexing="ij")
    return torch.stack((y, x) if spec.axes == "yx" else (x, y), dim=-1).view(-1, 2)


def _per_channel(values: Tensor, half: bool) -> Tensor:
    """One value per pair of channels, (..., d / 2), to one per channel, (..., d)."""
    return torch.cat((values, values), dim=-1) if half else values.repeat_interleave(2, dim=-1)


def _sin_cos(angles: Tensor, half: bool) -> Tensor:
    return torch.cat((_per_channel(angles.sin(), half), _per_channel(angles.cos(), half)), dim=-1)


def rope_table(spec: RopeSpec, head_dim: int, grid: tuple[int, int], like: Tensor) -> Tensor:
    """The table of a (h, w) grid with fixed frequencies: (N, 2 d), float32, or float64 for a float64 model.

    Args:
        spec: not ``learned``.
        head_dim: d, a multiple of 4.
        grid: (h, w).
        like: any tensor of the forward pass; the table is on its device.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    build = _cached if cacheable(like) else _build
    return build(spec, head_dim, grid, dtype, like.device)


@lru_cache(maxsize=16)
def _cached(spec: RopeSpec, head_dim: int, grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not serve a training step later
        return _build(spec, head_dim, grid, dtype, device)


def _build(spec: RopeSpec, head_dim: int, grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    bands = head_dim // 4
    exponents = torch.arange(bands, device=device, dtype=torch.float32) / bands
    # Periods and coordinates are float32 numbers in the references, also where the products are wider.
    periods = spec.temperature**exponents
    coordinates = grid_coordinates(spec, grid, device).to(dtype).unsqueeze(-1)
    if spec.coordinates == "centered":
        angles = 2 * math.pi * coordinates / periods.to(dtype)
    else:
        angles = coordinates * (1.0 / periods).to(dtype)
    return _sin_cos(angles.flatten(1), spec.half)


class MixedRope(nn.Module):
    """Learned frequencies for each head of each block, both axes in each angle (RoPE-Mixed, arXiv 2403.13298).

    Args:
        head_dim: d, a multiple of 4.
        depth: number of blocks.
        num_heads: H.
        temperature: ratio of the longest to the shortest period at the start.
    """

    def __init__(self, head_dim: int, depth: int, num_heads: int, temperature: float) -> None:
        super().__init__()
        # Each head starts with its own pair of perpendicular directions.
        sizes = 1.0 / temperature ** (torch.arange(0, head_dim, 4) / head_dim)
        turn = torch.rand(depth, num_heads, 1) * 2 * math.pi
        turns = (turn, turn + math.pi / 2)
        self.freqs = nn.Parameter(
            torch.stack([torch.cat([sizes * wave(t) for t in turns], dim=-1) for wave in (torch.cos, torch.sin)], dim=0)
        )

    def forward(self, coordinates: Tensor) -> Tensor:
        """(N, 2) coordinates -> (depth, H, N, 2 d)."""
        freqs = self.freqs.float().unsqueeze(-2)
        angles = coordinates[:, :1] * freqs[0] + coordinates[:, 1:] * freqs[1]
        return _sin_cos(angles, half=False).to(self.freqs.dtype)
