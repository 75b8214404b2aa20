"""Attention rollout against its definition written in loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visionzoo.layers.window import window_layout
from visionzoo.metrics.rollout import attention_rollout, whole_image_attention


def _maps(depth: int, tokens: int, *, batch: int = 2, heads: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, tokens, tokens, generator=generator).softmax(-1) for _ in range(depth)]


def _slow(maps: list[Tensor], b: int) -> Tensor:
    """What each token has seen of each first token: the sum over all paths through the blocks, one block at a time."""
    n = maps[0].shape[-1]
    seen = [[float(i == j) for j in range(n)] for i in range(n)]
    for weights in maps:
        mean = weights[b].mean(0)
        step = [[0.5 * float(mean[i, k]) + 0.5 * (i == k) for k in range(n)] for i in range(n)]
        seen = [[sum(step[i][k] * seen[k][j] for k in range(n)) for j in range(n)] for i in range(n)]
    return torch.tensor(seen)


def test_class_tokens_view_is_the_product_of_all_blocks() -> None:
    maps = _maps(3, 1 + 6)
    heat = attention_rollout(maps, (2, 3), prefix_tokens=1, query=0)
    assert heat.shape == (2, 2, 3)
    for b in range(2):
        patches = _slow(maps, b)[0, 1:]
        torch.testing.assert_close(heat[b].flatten(), patches / patches.sum())


def test_mean_view_leaves_prefix_tokens_out() -> None:
    maps = _maps(2, 2 + 6)
    heat = attention_rollout(maps, (3, 2), prefix_tokens=2)
    patches = _slow(maps, 1)[2:, 2:].mean(0)
    torch.testing.assert_close(heat[1].flatten(), patches / patches.sum())
    torch.testing.assert_close(heat.sum((1, 2)), torch.ones(2))


def test_a_patch_that_all_look_at_is_found() -> None:
    maps = [torch.zeros(1, 2, 10, 10) for _ in range(4)]
    for m in maps:
        m[..., 6] = 1  # the sixth token after the class token's: row 1, column 2
    heat = attention_rollout(maps, (3, 3), prefix_tokens=1, query=0)
    assert heat[0].argmax() == 5
    assert heat[0, 1, 2] > 0.99


def test_heads_may_be_averaged_before() -> None:
    maps = _maps(2, 4)
    mean = [m.mean(1) for m in maps]
    torch.testing.assert_close(attention_rollout(maps, (2, 2)), attention_rollout(mean, (2, 2)))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_merged_tokens_have_seen_what_their_four_have(grid: tuple[int, int]) -> None:
    h, w = grid
    merged = ((h + 1) // 2, (w + 1) // 2)
    first, second = _maps(1, h * w)[0], _maps(2, merged[0] * merged[1])[1]
    before = _slow([first], 0)
    between = torch.zeros(merged[0] * merged[1], h * w)
    for row in range(merged[0]):
        for col in range(merged[1]):
            four = [r * w + c for r in range(h) for c in range(w) if (r // 2, c // 2) == (row, col)]
            between[row * merged[1] + col] = before[four].mean(0)
    after = (0.5 * second[0].mean(0) + 0.5 * torch.eye(len(between))) @ between
    heat = attention_rollout([first, second], grid)
    torch.testing.assert_close(heat[0].flatten(), after.mean(0) / after.mean(0).sum())


@pytest.mark.parametrize(("grid", "shift"), [((4, 4), 0), ((8, 4), 2), ((5, 7), 2), ((6, 8), 0), ((3, 2), 0)])
def test_windows_on_the_whole_image(grid: tuple[int, int], shift: int) -> None:
    """Pair by pair: the weight within the window that holds both tokens, else nothing; padding is left out."""
    layout = window_layout(grid, 4, shift, torch.zeros(1))
    n, (hp, wp) = layout.num_windows, layout.padded
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(2, n, 2, 16, 16, generator=generator)
    order = torch.arange(hp * wp) if layout.order is None else layout.order
    expected = torch.zeros(2, grid[0] * grid[1], grid[0] * grid[1])
    for window in range(n):
        for i in range(16):
            for j in range(16):
                at = [divmod(int(order[window * 16 + k]), wp) for k in (i, j)]
                if all(r < grid[0] and c < grid[1] for r, c in at):
                    q, k = (r * grid[1] + c for r, c in at)
                    expected[:, q, k] = weights[:, window, :, i, j].mean(1)
    expected /= expected.sum(-1, keepdim=True)
    torch.testing.assert_close(whole_image_attention(weights, layout), expected)


def test_maps_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one block; got none"):
        attention_rollout([], (2, 2))
    with pytest.raises(ValueError, match="map 0 is of 7 tokens, a grid of 3x3 with 1 prefix tokens has 10"):
        attention_rollout(_maps(1, 7), (3, 3), prefix_tokens=1)
