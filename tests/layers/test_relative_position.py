"""Relative positions against loops over all pairs of tokens, and their resampling against timm's."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor

from visionzoo.layers.decomposed_attention import DecomposedAttention
from visionzoo.layers.relative_position import CLASS_ROWS, RelativeBiasAttention, resample_relative_table


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _fill(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(_randn(*p.shape, seed=i) * 0.3)


def _rows(grid: tuple[int, int]) -> int:
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLASS_ROWS


def test_class_bias_is_the_table_looked_up_pair_by_pair() -> None:
    h, w = 2, 3
    attn = RelativeBiasAttention(8, 2, (h, w))
    _fill(attn)
    bias = attn.position_bias((h, w))
    assert bias.shape == (1, 2, 7, 7)
    table = attn.relative_position_bias_table
    for q in range(7):
        for k in range(7):
            if q == 0 or k == 0:
                row = {(True, False): -3, (False, True): -2, (True, True): -1}[q == 0, k == 0]
            else:
                down, across = (q - 1) // w - (k - 1) // w, (q - 1) % w - (k - 1) % w
                row = (down + h - 1) * (2 * w - 1) + across + w - 1
            assert torch.equal(bias[0, :, q, k], table[row])


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((4, 6), (9, 5)), ((4, 4), (4, 9)), ((3, 3), (1, 1))]
)
def test_resampled_table_is_timms(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = _randn(_rows(old), 3)
    expected = resize_rel_pos_bias_table(table, new, (_rows(new), 3), old)
    ours = resample_relative_table(table, new, old_grid=old, extra_rows=CLASS_ROWS)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert torch.equal(ours[-3:], table[-3:])


def test_one_token_is_spread_over_a_grid() -> None:
    """A single entry has nothing between which to interpolate; timm divides by zero there."""
    table = _randn(1 + CLASS_ROWS, 2)
    ours = resample_relative_table(table, (2, 2), old_grid=(1, 1), extra_rows=CLASS_ROWS)
    assert torch.equal(ours[:9], table[:1].expand(9, 2))


def test_class_bias_of_visible_patches_is_picked_from_the_whole() -> None:
    attn = RelativeBiasAttention(8, 2, (3, 3))
    _fill(attn)
    keep = torch.tensor([[8, 0, 5], [1, 2, 3]])
    whole, part = attn.position_bias((3, 4))[0], attn.position_bias((3, 4), keep)
    for b in range(2):
        seen = [0, *(keep[b] + 1).tolist()]
        assert torch.equal(part[b], whole[:, seen][:, :, seen])


@pytest.mark.parametrize("keep", [None, torch.tensor([[3, 1], [0, 2]])])
def test_class_attention_is_its_weights_applied(keep: Tensor | None) -> None:
    attn = RelativeBiasAttention(8, 2, (2, 2)).double()
    _fill(attn)
    x = _randn(2, 5 if keep is None else 3, 8).double()
    values = attn.project(x)[..., 16:].unflatten(-1, (2, 4)).transpose(1, 2)
    expected = attn.proj((attn.weights(x, (2, 2), keep) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attn(x, (2, 2), keep), expected)


# Decomposed positions (ViTDet, SAM).


def _slow_bias(attn: DecomposedAttention, q: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    bias = torch.empty(*q.shape[:3], h * w, dtype=q.dtype)
    for i in range(h * w):
        for j in range(h * w):
            down = attn.rel_pos_h[i // w - j // w + h - 1]
            across = attn.rel_pos_w[i % w - j % w + w - 1]
            bias[..., i, j] = q[..., i, :] @ down + q[..., i, :] @ across
    return bias


def test_decomposed_bias_is_the_double_loop() -> None:
    attn = DecomposedAttention(8, 2, (3, 4)).double()
    _fill(attn)
    q = _randn(2, 2, 12, 4).double()
    torch.testing.assert_close(attn.position_bias(q, (3, 4)), _slow_bias(attn, q, (3, 4)))


@pytest.mark.parametrize("grid", [(3, 4), (5, 3), (2, 2), (7, 9), (1, 6)])
def test_decomposed_bias_at_other_sizes_is_timms(grid: tuple[int, int]) -> None:
    attn = DecomposedAttention(8, 2, (3, 4)).double()
    _fill(attn)
    q = _randn(2, 2, grid[0] * grid[1], 4).double()
    expected = get_decomposed_rel_pos_bias(q.flatten(0, 1), attn.rel_pos_h, attn.rel_pos_w, grid, grid)
    torch.testing.assert_close(attn.position_bias(q, grid).flatten(0, 1), expected)


@pytest.mark.parametrize("grid", [(3, 4), (5, 3), (4, 4)])
def test_extra_channels_carry_the_bias_exactly(grid: tuple[int, int]) -> None:
    """Head widths 4 + 3 + 4, 4 + 5 + 3 and 4 + 4 + 4: with and without spare channels; values and gradients."""
    attn = DecomposedAttention(8, 2, (3, 4)).double()
    _fill(attn)
    q, k, v = (_randn(2, 2, grid[0] * grid[1], 4, seed=s).double().requires_grad_() for s in range(3))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn.position_bias(q, grid))
    carried = attn._through_channels(q, k, v, grid)
    torch.testing.assert_close(carried, plain, rtol=0, atol=1e-12)
    wanted = (q, k, v, attn.rel_pos_h, attn.rel_pos_w)
    probe = _randn(*plain.shape, seed=9).double()
    for a, b in zip(
        torch.autograd.grad(carried, wanted, probe), torch.autograd.grad(plain, wanted, probe), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_bfloat16_goes_through_channels_and_float32_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    attn = DecomposedAttention(16, 2, (4, 4))
    _fill(attn)
    taken: list[torch.dtype] = []
    whole = DecomposedAttention._through_channels

    def listen(self: DecomposedAttention, q: Tensor, *args: object) -> Tensor:
        taken.append(q.dtype)
        return whole(self, q, *args)

    monkeypatch.setattr(DecomposedAttention, "_through_channels", listen)
    x = _randn(2, 16, 16)
    exact = attn(x, (4, 4))
    assert taken == []
    rounded = attn.bfloat16()(x.bfloat16(), (4, 4))
    assert taken == [torch.bfloat16]
    assert (rounded.float() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (2, 3), (8, 8)])
def test_windows_attend_apart_and_see_their_padding(grid: tuple[int, int]) -> None:
    """Each window by itself, zeros in its padding, is what the windowed layer computes."""
    h, w = grid
    attn = DecomposedAttention(8, 2, (4, 4), windowed=True).double()
    _fill(attn)
    one = DecomposedAttention(8, 2, (4, 4)).double()
    one.load_state_dict(attn.state_dict())
    x = _randn(2, h * w, 8).double()
    padded = torch.zeros(2, -(-h // 4) * 4, -(-w // 4) * 4, 8, dtype=torch.float64)
    padded[:, :h, :w] = x.view(2, h, w, 8)
    expected = torch.empty_like(padded)
    for top in range(0, padded.shape[1], 4):
        for left in range(0, padded.shape[2], 4):
            window = padded[:, top : top + 4, left : left + 4].reshape(2, 16, 8)
            expected[:, top : top + 4, left : left + 4] = one(window, (4, 4)).view(2, 4, 4, 8)
    torch.testing.assert_close(attn(x, grid), expected[:, :h, :w].reshape(2, h * w, 8))
