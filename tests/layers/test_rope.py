"""Rotary positions against the formula written out, and what they are for: logits that depend on distances only."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from visionzoo.layers.rope import MixedRope, RopeSpec, apply_rope, grid_coordinates, rope_table

D, GRID = 16, (3, 5)
CPU = torch.device("cpu")
AXIAL = RopeSpec(axes="xy", temperature=100.0)
DINOV3 = RopeSpec(coordinates="centered", temperature=100.0, half=True)


def _slow(spec: RopeSpec, x: Tensor) -> Tensor:
    """Rotate each pair of channels of each token as a complex number, one after the other: (N, D) -> (N, D)."""
    out = x.clone()
    h, w = GRID
    for token in range(h * w):
        row, col = token // w, token % w
        if spec.coordinates == "centered":
            place = {"y": 2 * math.pi * (2 * (row + 0.5) / h - 1), "x": 2 * math.pi * (2 * (col + 0.5) / w - 1)}
        elif spec.reference_grid is not None:
            place = {"y": row / h * spec.reference_grid[0], "x": col / w * spec.reference_grid[1]}
        else:
            place = {"y": float(row), "x": float(col)}
        for pair in range(D // 2):
            axis, band = spec.axes[pair // (D // 4)], pair % (D // 4)
            angle = place[axis] / spec.temperature ** (band / (D // 4))
            a, b = (pair, pair + D // 2) if spec.half else (2 * pair, 2 * pair + 1)
            turned = complex(x[token, a], x[token, b]) * complex(math.cos(angle), math.sin(angle))
            out[token, a], out[token, b] = turned.real, turned.imag
    return out


@pytest.mark.parametrize(
    "spec", [RopeSpec(), AXIAL, DINOV3, RopeSpec(reference_grid=(16, 8)), RopeSpec(axes="xy", half=True)]
)
def test_table_is_the_formula(spec: RopeSpec) -> None:
    x = torch.randn(15, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = rope_table(spec, D, GRID, x)
    assert table.shape == (15, 2 * D)
    assert table.dtype == torch.float64
    # Periods and coordinates are float32 numbers, as in the references.
    torch.testing.assert_close(apply_rope(x, table, half=spec.half), _slow(spec, x), rtol=0, atol=2e-6)
    torch.testing.assert_close(rope_table(spec, D, GRID, x.float()).double(), table, rtol=0, atol=1e-6)


def test_logits_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).expand(2, 15, D)
    table = rope_table(AXIAL, D, GRID, q)
    logits = (apply_rope(q, table) @ apply_rope(k, table).T).view(*GRID, *GRID)
    torch.testing.assert_close(logits[0, 0, 1, 2], logits[1, 2, 2, 4], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits[2, 4, 0, 1], logits[2, 3, 0, 0], rtol=0, atol=1e-6)
    assert abs(logits[0, 0, 1, 2] - logits[0, 0, 2, 1]) > 1e-3


def test_prefix_tokens_are_not_turned_and_the_dtype_stays() -> None:
    x = torch.randn(2, 3, 17, D, generator=torch.Generator().manual_seed(2))
    table = rope_table(AXIAL, D, GRID, x)
    out = apply_rope(x, table)
    assert torch.equal(out[:, :, :2], x[:, :, :2])
    assert torch.equal(out[:, :, 2:], apply_rope(x[:, :, 2:], table))
    half = apply_rope(x.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    # Turned in float32 and rounded once.
    assert torch.equal(half, apply_rope(x.bfloat16().float(), table).bfloat16())


def test_tables_are_kept_but_not_mixed_up() -> None:
    x = torch.zeros(1)
    with torch.inference_mode():
        first = rope_table(AXIAL, D, (7, 3), x)
    assert rope_table(AXIAL, D, (7, 3), x) is first
    assert not first.is_inference()
    assert rope_table(AXIAL, D, (3, 7), x) is not first
    assert rope_table(DINOV3, D, (7, 3), x) is not first
    assert rope_table(AXIAL, D, (7, 3), x.to("meta")).device.type == "meta"


def test_mixed_frequencies_are_a_sum_over_both_axes() -> None:
    torch.manual_seed(0)
    rope = MixedRope(D, depth=2, num_heads=3, temperature=10.0)
    coordinates = grid_coordinates(RopeSpec(axes="xy", learned=True), GRID, CPU)
    tables = rope(coordinates)
    assert tables.shape == (2, 3, 15, 2 * D)
    token, row, col = 7, 1.0, 2.0
    for pair in range(D // 2):
        angle = col * rope.freqs[0, 1, 2, pair] + row * rope.freqs[1, 1, 2, pair]
        torch.testing.assert_close(tables[1, 2, token, 2 * pair], angle.sin())
        torch.testing.assert_close(tables[1, 2, token, D + 2 * pair + 1], angle.cos())
    # Perpendicular pairs at the start: each frequency of the first half has its twin in the second.
    first, second = rope.freqs[..., : D // 4], rope.freqs[..., D // 4 :]
    torch.testing.assert_close((first * second).sum(0), torch.zeros(2, 3, D // 4), rtol=0, atol=1e-6)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="coordinates='pixels' must be one of index, centered"):
        RopeSpec(coordinates="pixels")
    with pytest.raises(ValueError, match="axes='yz' must be one of yx, xy"):
        RopeSpec(axes="yz")
