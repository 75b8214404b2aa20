"""Multiply-adds against their written-out number, whatever kernel computes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionzoo.layers.attention import Attention
from visionzoo.layers.mlp import Mlp
from visionzoo.macs import count_macs


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_products_attention_and_convolutions(device: str, mode: type) -> None:
    a, b, c = (torch.randn(s, device=device) for s in ((4, 5), (5, 6), (6,)))
    q, k = torch.randn(1, 2, 7, 8, device=device), torch.randn(1, 2, 9, 8, device=device)
    image = torch.randn(2, 6, 8, 8, device=device)
    conv = nn.Conv2d(6, 4, 3, groups=2, device=device)
    up = nn.ConvTranspose2d(6, 4, 2, stride=2, device=device)
    with mode():
        assert count_macs(lambda: a @ b) == 4 * 5 * 6
        assert count_macs(lambda: F.linear(a, b.mT, c)) == 4 * 5 * 6
        assert count_macs(lambda: F.scaled_dot_product_attention(q, k, k)) == 2 * (2 * 7 * 9 * 8)
        assert count_macs(lambda: conv(image)) == 2 * (4 * 6 * 6) * (3 * 3 * 3)
        assert count_macs(lambda: up(image)) == 2 * (6 * 8 * 8) * (4 * 2 * 2)


def test_a_backward_pass_counts_a_product_for_each_gradient() -> None:
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    assert count_macs(lambda: (a @ b).sum().backward()) == 3 * (4 * 5 * 6)
    conv, image = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    assert count_macs(lambda: conv(image).sum().backward()) == 2 * (4 * 6 * 6) * (3 * 3 * 3)  # none for the image
    q = torch.randn(1, 2, 7, 8, requires_grad=True)
    assert count_macs(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward()) == 6 * (2 * 7 * 7 * 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_own_kernels_step_aside(dtype: torch.dtype) -> None:
    mlp, attention, x = Mlp(16, 64).to(dtype), Attention(16, 2).to(dtype), torch.randn(2, 5, 16, dtype=dtype)
    with torch.no_grad():
        assert count_macs(lambda: mlp(x)) == 2 * (10 * 16 * 64)
    forward = 4 * (10 * 16 * 16) + 2 * (2 * 5 * 5 * 16)
    assert count_macs(lambda: attention(x)) == forward  # with gradients: bf16 has a kernel of its own here
    x.requires_grad_()
    assert count_macs(lambda: attention(x).sum().backward()) == 3 * forward


def test_an_encoder_of_torch_itself_counts_in_evaluation() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        assert count_macs(lambda: layer(x)) == 4 * (10 * 16 * 16) + 2 * (2 * 5 * 5 * 16) + 2 * (10 * 16 * 32)
    assert torch.backends.mha.get_fastpath_enabled()
