"""The fused kernels of CPU inference: same numbers, and only where nothing is lost by them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers import linear as module
from visionzoo.layers.linear import apply_linear, linear, takes_fused_kernel
from visionzoo.layers.mlp import Mlp

fused = pytest.mark.skipif(
    torch.bfloat16 not in module._kernel_dtypes(), reason="this CPU or this build of PyTorch has no fused kernel"
)


def _parts(dtype: torch.dtype, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(0)
    x, w, b = torch.randn(2, 5, 48, generator=g), torch.randn(32, 48, generator=g), torch.randn(32, generator=g)
    return x.to(dtype), w.to(dtype), b.to(dtype) if bias else None


@fused
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_kernel_gives_the_same(dtype: torch.dtype, bias: bool, gelu: str | None) -> None:
    x, w, b = _parts(dtype, bias)
    exact = F.linear(x.double(), w.double(), None if b is None else b.double())
    if gelu is not None:
        exact = F.gelu(exact, approximate=gelu)
    with torch.no_grad():
        assert takes_fused_kernel(x, w, gelu=gelu is not None) == (dtype == torch.bfloat16 or gelu is not None)
        ours = linear(x, w, b, gelu=gelu)
    assert ours.dtype == dtype
    assert ours.shape == (2, 5, 32)
    # One rounding: half a unit in the last place of 8 bits, and float32's sums.
    bound = 2.0**-8 if dtype == torch.bfloat16 else 3e-6
    assert ((ours.double() - exact).abs() <= bound * exact.abs().clamp(min=1) * 1.05).all()


@fused
def test_fused_kernel_is_left_alone_where_it_would_lose_something() -> None:
    x, w, _ = _parts(torch.bfloat16)
    assert not takes_fused_kernel(x, w)  # gradients
    with torch.no_grad():
        assert takes_fused_kernel(x, w)
        assert not takes_fused_kernel(x[:0], w)
        assert not takes_fused_kernel(x.float(), w.float())
        assert not takes_fused_kernel(x.half(), w.half(), gelu=True)
        assert not takes_fused_kernel(x.double(), w.double(), gelu=True)
        assert not takes_fused_kernel(x.to("meta"), w.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not takes_fused_kernel(x, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow_as_through_the_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 32).to(dtype)
    grads = []
    for run in (layer, lambda x: apply_linear(layer, x)):
        layer.zero_grad()
        run(_parts(dtype)[0]).square().mean().backward()
        grads.append((layer.weight.grad.clone(), layer.bias.grad.clone()))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def _listener(seen: list[str], name: str) -> Callable[..., None]:
    return lambda *_: seen.append(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_listens_to_a_part_of_the_mlp_hears_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mlp = Mlp(48, 96).to(dtype)
    x = _parts(dtype)[0]
    with torch.no_grad():
        alone = mlp(x)
        seen: list[str] = []
        mlp.fc1.register_forward_hook(_listener(seen, "fc1"))
        mlp.act.register_forward_pre_hook(_listener(seen, "act"))
        heard = mlp(x)
    assert seen == ["fc1", "act"]
    torch.testing.assert_close(heard, alone, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_an_adapter_in_place_of_a_layer_is_asked() -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.weight = inner.weight

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    torch.manual_seed(0)
    mlp, x = Mlp(48, 96), _parts(torch.float32)[0]
    expected = mlp.fc2(F.gelu(2 * mlp.fc1(x)))
    mlp.fc1 = Doubled(mlp.fc1)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-5)
