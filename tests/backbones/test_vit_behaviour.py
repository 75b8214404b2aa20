"""ViTs in training and under the compiler: checkpointing, one graph, half precision, attention maps."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from backbone_checks import assert_close
from torch import Tensor, nn
from vit_twins import pictures, shallow, twins

from visionzoo.backbones.vit import VisionTransformer

KINDS = [
    "vit_small_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_plus_patch16_dinov3",
    "beit_base_patch16_224",
    "samvit_base_patch16",
]
#: The compiler takes seconds for each.
COMPILED = [
    n if n in ("vit_small_patch16_224", "samvit_base_patch16") else pytest.param(n, marks=pytest.mark.slow)
    for n in KINDS
]
#: bfloat16 keeps 8 bits: after two blocks features of size 1 to 3 are off by less than this share of their largest.
BFLOAT16 = 0.03


def _gradients(model: VisionTransformer, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    out = model(x)
    (out.pooled.square().mean() + out.grid.square().mean()).backward()
    found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_checkpointing_gives_equal_gradients_and_keeps_less(name: str) -> None:
    model, _ = twins(name, 64)
    x = pictures(64)
    stored: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        stored[-1] += tensor.numel()
        return tensor

    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        stored.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            results.append(_gradients(model, x))
    model.set_grad_checkpointing(False)
    assert results[0].keys() == results[1].keys()
    for key, gradient in results[0].items():
        assert_close(results[1][key], gradient, 1e-6)
    assert stored[1] < 0.5 * stored[0]


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_to_one_graph_with_the_same_keys(name: str) -> None:
    model, _ = twins(name, 64)
    keys = list(model.state_dict())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    x = pictures(48, 80)  # not the model's own size, so that tables are resampled in the graph
    with torch.no_grad():
        for ours, reference in zip(compiled(x), model(x), strict=True):
            assert_close(ours, reference)
    assert list(model.state_dict()) == keys
    assert [k.removeprefix("_orig_mod.") for k in compiled.state_dict()] == keys
    model.compile(backend="aot_eager", fullgraph=True)  # in place: no wrapper, no prefix
    assert list(model.state_dict()) == keys
    model._compiled_call_impl = None


@pytest.mark.long
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_plus_patch16_dinov3"])
def test_compiles_once_for_each_size(name: str) -> None:
    model, _ = twins(name, 64)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    with torch.no_grad():
        for size in (64, 48, 64, 48):
            compiled(pictures(size))
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_compiled_training_gives_the_same_gradients(name: str) -> None:
    model, _ = twins(name, 64)
    x = pictures(64)
    expected = _gradients(model, x)
    torch._dynamo.reset()
    model.compile(backend="aot_eager", fullgraph=True)
    try:
        found = _gradients(model, x)
    finally:
        model._compiled_call_impl = None
    for key, gradient in expected.items():
        assert_close(found[key], gradient)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_stays_near_float32(name: str, autocast: bool, grad: bool) -> None:
    model, _ = twins(name, 64)
    x = pictures(64)
    with torch.no_grad():
        reference = model(x)
    half = model if autocast else shallow(name, image_size=(64, 64)).eval()
    if not autocast:
        half.load_state_dict(model.state_dict())
        half = half.bfloat16()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = half(x if autocast else x.bfloat16())
    for ours, exact in zip(out, reference, strict=True):
        if exact.numel():
            assert ours.isfinite().all()
            assert (ours.float() - exact).abs().max() < BFLOAT16 * exact.abs().max()


@pytest.mark.parametrize("name", KINDS)
def test_drop_path_needs_no_more_than_the_rate(name: str) -> None:
    model = shallow(name, image_size=(64, 64), drop_path=0.5)
    assert [b.drop_path1.rate for b in model.blocks] == [0.0, 0.5]
    x = pictures(64, batch=4)
    with torch.no_grad():
        torch.manual_seed(0)
        noisy = [model.train().forward_features(x) for _ in range(4)]
        still = [model.eval().forward_features(x) for _ in range(2)]
    assert torch.equal(*still)
    assert any(not torch.equal(noisy[0], other) for other in noisy[1:])


# Attention maps.


@pytest.mark.parametrize("name", KINDS)
def test_attention_maps_sum_to_one_and_change_nothing(name: str) -> None:
    model, _ = twins(name, 64)
    x = pictures(64, 80)
    with torch.no_grad():
        before = model.forward_features(x)
        maps = model.attention_maps(x)
        assert torch.equal(model.forward_features(x), before)
    assert len(maps) == len(model.blocks)
    assert not any(m.requires_grad for m in maps)
    for weights in maps:
        assert weights.shape[0] == 2
        assert weights.min() >= 0
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("name", [n for n in KINDS if not n.startswith("samvit")])
def test_attention_maps_reproduce_the_blocks(name: str) -> None:
    """The maps applied to the values, written out head by head, give what each block's attention gave."""
    model, _ = twins(name, 64)
    x = pictures(64, 80)
    inputs, outputs = _record(model, x)
    maps = model.attention_maps(x)
    for block, weights, inside, outside in zip(model.blocks, maps, inputs, outputs, strict=True):
        attn = block.attn
        with torch.no_grad():
            values = attn.project(inside)[..., -attn.num_heads * attn.head_dim :]
            heads = values.unflatten(-1, (attn.num_heads, attn.head_dim))
            mixed = torch.einsum("bhqk,bkhd->bqhd", weights, heads).flatten(2)
            assert_close(attn.proj(mixed), outside)


def _record(model: VisionTransformer, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def listen(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object], output: Tensor) -> None:
        inputs.append(args[0])
        outputs.append(output)

    handles = [b.attn.register_forward_hook(listen, with_kwargs=True) for b in model.blocks]
    with torch.no_grad():
        model.forward_features(x)
    for handle in handles:
        handle.remove()
    return inputs, outputs


def test_window_maps_reproduce_the_blocks() -> None:
    """SAM's encoder: a windowed map holds the windows of its layout, padding included; a global one the whole image."""
    model, _ = twins("samvit_base_patch16", 64)
    x = pictures(17 * 16, 20 * 16)  # 17 x 20 tokens, 2 x 2 windows of 14
    inputs, outputs = _record(model, x)
    maps, layouts = model.attention_maps(x), model.attention_layouts((17 * 16, 20 * 16), x)
    assert [m.shape for m in maps] == [(2, 4, 12, 196, 196), (2, 12, 340, 340)]
    assert layouts[1] is None
    with torch.no_grad():
        for block, weights, inside, outside in zip(model.blocks, maps, inputs, outputs, strict=True):
            attn = block.attn
            values = attn.qkv(inside)[..., -768:].view(2, 17, 20, 768)
            if weights.ndim == 4:
                heads = values.reshape(2, 340, 12, 64)
                mixed = torch.einsum("bhqk,bkhd->bqhd", weights, heads).flatten(2)
            else:
                padded = attn.qkv.bias[-768:].expand(2, 28, 28, 768).clone()
                padded[:, :17, :20] = values
                mixed = torch.empty(2, 28, 28, 768)
                for i in range(4):
                    rows, cols = slice(i // 2 * 14, i // 2 * 14 + 14), slice(i % 2 * 14, i % 2 * 14 + 14)
                    heads = padded[:, rows, cols].reshape(2, 196, 12, 64)
                    part = torch.einsum("bhqk,bkhd->bqhd", weights[:, i], heads)
                    mixed[:, rows, cols] = part.reshape(2, 14, 14, 768)
                mixed = mixed[:, :17, :20].reshape(2, 340, 768)
            assert_close(attn.proj(mixed), outside)


# What an optimiser asks.


def test_tables_and_tokens_are_not_decayed() -> None:
    assert {"cls_token", "blocks.1.attn.relative_position_bias_table"} <= shallow(
        "beit_base_patch16_224", image_size=(64, 64)
    ).no_weight_decay()
    assert "rope.freqs" in shallow("vit_small_patch16_rope_mixed_224", image_size=(64, 64)).no_weight_decay()
    assert "rope.freqs" not in shallow("vit_small_patch16_rope_224", image_size=(64, 64)).no_weight_decay()
    assert "pos_embed" in shallow("samvit_base_patch16", image_size=(64, 64)).no_weight_decay()


def test_sam_encoder_has_no_class_token_to_pool() -> None:
    with pytest.raises(ValueError, match="global_pool='token' is not possible"):
        shallow("samvit_base_patch16", image_size=(64, 64)).reset_classifier(3, "token")
