"""Absolute positions: the sine-cosine table against MAE's formula, resampling against timm's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed

from visionzoo.layers.position import resample_positions, sincos_2d, stored_grid


def _reference(grid: tuple[int, int], dim: int) -> np.ndarray:
    """MAE's formula, token by token and channel by channel, in float64."""
    h, w = grid
    table = np.zeros((h * w, dim))
    for token in range(h * w):
        for half, place in enumerate((token % w, token // w)):  # the column first
            for i in range(dim // 4):
                angle = place / 10000 ** (i / (dim / 4))
                table[token, half * dim // 2 + i] = np.sin(angle)
                table[token, half * dim // 2 + dim // 4 + i] = np.cos(angle)
    return table


@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
def test_sincos_is_the_formula(grid: tuple[int, int]) -> None:
    table = sincos_2d(grid, 32, prefix_tokens=1)
    assert table.shape == (1, 1 + grid[0] * grid[1], 32)
    assert not table[0, 0].any()
    np.testing.assert_array_equal(table[0, 1:].numpy(), _reference(grid, 32).astype(np.float32))


def test_sincos_wants_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        sincos_2d((2, 2), 30)


@pytest.mark.parametrize("new", [(7, 7), (3, 11), (5, 5)])
def test_resampling_is_timms(new: tuple[int, int]) -> None:
    table = torch.randn(1, 2 + 25, 8, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(table, list(new), [5, 5], num_prefix_tokens=2)
    ours = resample_positions(table, new, old_grid=(5, 5), prefix_tokens=2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_a_stored_grid_is_what_was_said_else_the_models_own_else_square() -> None:
    assert stored_grid(64, (8, 8), (4, 16)) == (4, 16)
    assert stored_grid(64, (16, 4), (4, 8)) == (16, 4)  # what was said does not fit
    assert stored_grid(64, (16, 4)) == (16, 4)
    assert stored_grid(49, (16, 4), (4, 16)) == (7, 7)
    with pytest.raises(ValueError, match="48 patch tokens is not square"):
        stored_grid(48, (7, 7))
