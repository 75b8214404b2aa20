import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from visionzoo.layers.attention import Attention
from visionzoo.layers.cpu_attention import MAX_TOKENS, packed_attention, takes_packed_attention


def _plain(qkv, heads):
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# The third does not fit into one chunk of images, the last has a chunk per image.
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "dim"), [(1, 1, 1, 4), (3, 17, 2, 16), (9, 180, 3, 24), (2, 400, 4, 16)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_written_out_attention(batch, tokens, heads, dim, dtype):
    g = torch.Generator().manual_seed(0)
    qkv = (2 * torch.randn(batch, tokens, 3 * dim, generator=g, dtype=torch.float64)).to(dtype)
    out_grad = torch.randn(batch, tokens, dim, generator=g, dtype=torch.float64).to(dtype)
    exact = qkv.double().requires_grad_()
    expected = _plain(exact, heads)
    expected.backward(out_grad.double())
    x = qkv.requires_grad_()
    out = packed_attention(x, heads)
    out.backward(out_grad)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert out.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    scale = exact.grad.abs().max()
    torch.testing.assert_close(x.grad.double() / scale, exact.grad / scale, rtol=tolerance, atol=tolerance)


def test_large_logits_do_not_overflow():
    qkv = (300 * torch.randn(2, 20, 48)).bfloat16().requires_grad_()
    out = packed_attention(qkv, 2)
    out.float().sum().backward()
    assert out.isfinite().all()
    assert qkv.grad.isfinite().all()


def test_attention_trained_in_bfloat16_agrees_with_the_fused_kernel():
    torch.manual_seed(0)
    layer = Attention(32, 4)
    x = torch.randn(2, 30, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert takes_packed_attention(layer.project(x))
        out = layer(x)
        q, k, v = layer.heads(x)
        fused = layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, fused, rtol=0, atol=1e-2)
    (got,) = torch.autograd.grad(out.float().square().sum(), x)
    (expected,) = torch.autograd.grad(fused.float().square().sum(), x)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


def test_it_serves_low_precision_training_only():
    x = torch.zeros(2, 5, 24, dtype=torch.bfloat16, requires_grad=True)
    assert takes_packed_attention(x)
    assert not takes_packed_attention(x.float())
    assert not takes_packed_attention(x.detach())
    assert not takes_packed_attention(torch.zeros(1, MAX_TOKENS + 1, 24, dtype=torch.bfloat16, requires_grad=True))
    with torch.no_grad():
        assert not takes_packed_attention(x)


@pytest.mark.long
def test_the_gradient_of_its_gradient_is_that_of_written_out_attention():
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 9, 48, generator=g, dtype=torch.float64, requires_grad=True)
    out_grad = torch.randn(2, 9, 16, generator=g, dtype=torch.float64)

    def penalty(attend):
        (first,) = torch.autograd.grad((attend(qkv, 2) * out_grad).sum(), qkv, create_graph=True)
        return torch.autograd.grad(first.square().sum(), qkv)[0]

    torch.testing.assert_close(penalty(packed_attention), penalty(_plain), rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradgradcheck(lambda x: packed_attention(x, 2), qkv)


def test_a_gradient_penalty_in_bfloat16_has_every_term():
    torch.manual_seed(0)
    layer = Attention(64, 4)
    x = torch.randn(2, 9, 64, requires_grad=True)

    def penalty(module, x):
        (first,) = torch.autograd.grad(module(x).float().square().sum(), x, create_graph=True)
        return torch.cat([v.float().flatten() for v in torch.autograd.grad(first.float().square().sum(), x)])

    with sdpa_kernel(SDPBackend.MATH):
        exact = penalty(layer, x)
    low = penalty(layer.bfloat16(), x.bfloat16().detach().requires_grad_())
    assert torch.cosine_similarity(exact, low, dim=0) > 0.999
    assert low.norm() == pytest.approx(exact.norm().item(), rel=0.05)
