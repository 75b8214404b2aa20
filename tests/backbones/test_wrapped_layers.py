"""Whatever is put in a layer's place, or around it, takes part: adapters, wrappers, hooks, quantised layers.

Swept over the families and models, since each has its own way of computing past a layer where nothing stands around it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import pytest
import torch
from backbone_checks import perturb
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from vit_twins import shallow

import visionzoo as vz
from visionzoo.models.sam.prompts import Prompts
from visionzoo.tasks.lora import add_adapters, merged_copy


class Case(NamedTuple):
    model: nn.Module
    run: Callable[[nn.Module], Tensor]  #: everything the model gives, in one vector


def _vector(out: Any) -> Tensor:
    found = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point()]
    return torch.cat([x.flatten() for x in found])


def _images(size: int, like: nn.Module) -> Tensor:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x.to(next(like.parameters()).dtype)


def _vit(name: str, size: int, **parts: Any) -> Case:
    model = shallow(name, parts={"embed_dim": 64, "num_heads": 4, **parts}, image_size=(size, size))
    return Case(model, lambda m: _vector(tuple(m(_images(size, m)))))


def _backbone(name: str, size: int) -> Case:
    model = vz.create_backbone(name, image_size=size)
    return Case(model, lambda m: _vector(tuple(m(_images(size, m)))))


def _masked_tokens() -> Case:
    model = vz.create_mae("vit_nano_patch4_32", decoder_dim=64, decoder_depth=1, decoder_heads=4)
    noise = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    return Case(model, lambda m: _vector(m(_images(32, m), noise=noise).prediction))


def _clip() -> Case:
    model = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", context_length=16)
    ids = torch.randint(1, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    return Case(model, lambda m: torch.cat((_vector(m.encode_image(_images(32, m))), _vector(m.encode_text(ids)))))


def _sam(prompts: int) -> Case:
    model = vz.create_sam("vit_nano_patch4_32", image_size=64, embedding_stride=8, decoder_dim=64)
    g = torch.Generator().manual_seed(0)
    points = torch.rand(prompts, 2, 2, generator=g) * 60
    masks = torch.randn(prompts, 1, *model.mask_size, generator=g)
    given = Prompts(points, torch.ones(prompts, 2, dtype=torch.int64), masks, image_index=torch.arange(prompts) % 2)

    def run(m: nn.Module) -> Tensor:
        out = m.decode(m.image_encoder(_images(64, m)), given, None)
        return torch.cat((_vector(out.masks), _vector(out.scores)))

    return Case(model, run)


CASES: dict[str, Callable[[], Case]] = {
    "vit": lambda: _backbone("vit_nano_patch4_32", 32),
    "deit3": lambda: _vit("deit3_small_patch16_224", 64),
    "qk norm": lambda: _vit("vit_small_patch16_qknorm_224", 64),
    "dinov2, SwiGLU packed": lambda: _vit("vit_giant_patch14_dinov2", 56, embed_dim=96),
    "dinov3, qkv bias": lambda: _vit("vit_small_patch16_dinov3_qkvb", 64),
    "dinov3, SwiGLU": lambda: _vit("vit_small_plus_patch16_dinov3", 64),
    "siglip, attention pooling": lambda: _vit("vit_base_patch16_siglip_224", 64),
    "beit": lambda: _vit("beit_base_patch16_224", 64),
    "beitv2": lambda: _vit("beitv2_base_patch16_224", 64),
    "samvit": lambda: _vit("samvit_base_patch16", 64),
    "swin": lambda: _backbone("swin_nano_patch2_window4_32", 32),
    "swinv2": lambda: _backbone("swinv2_nano_patch2_window4_32", 32),
    "mae": _masked_tokens,
    "clip": _clip,
    "sam, a few tokens": lambda: _sam(6),
    "timm beit": lambda: _backbone("timm/beit_base_patch16_224", 64),
    "timm eva": lambda: _backbone("timm/eva02_tiny_patch14_224", 56),
    "timm swinv2": lambda: _backbone("timm/swinv2_cr_tiny_ns_224", 64),
}
OURS = [name for name in CASES if not name.startswith("timm")]


def _case(name: str, dtype: torch.dtype = torch.float32) -> Case:
    torch.manual_seed(0)
    case = CASES[name]()
    perturb(case.model)
    return Case(case.model.to(dtype).eval(), case.run)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if "lora_" in n}


def _every_adapter_works(adapted: nn.Module, case: Case) -> None:
    """Each adapter has a gradient, and moves the output, with and without gradients."""
    adapters = _adapters(adapted)
    assert adapters
    g = torch.Generator().manual_seed(0)
    for name, value in adapters.items():
        if "lora_B" in name:
            value.data = torch.randn(value.shape, generator=g) * 0.05
    with torch.enable_grad():
        out = case.run(adapted)
        (out * torch.randn(out.shape, generator=g)).sum().backward()
    dead = [n for n, p in adapters.items() if p.grad is None or not p.grad.any()]
    assert not dead
    with torch.no_grad():
        assert _difference(case.run(adapted), out) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_our_adapters_reach_every_linear_layer_and_merge_into_the_same(name: str) -> None:
    case = _case(name)
    keys, plain = set(case.model.state_dict()), case.run(case.model)
    linear = sum(isinstance(m, nn.Linear) for m in case.model.modules())
    add_adapters(case.model, rank=2, alpha=4.0, keep=("nothing.",))
    assert len(_adapters(case.model)) == 2 * linear
    _every_adapter_works(case.model, case)
    with torch.no_grad():
        adapted, merged = case.run(case.model), merged_copy(case.model)
        assert set(merged.state_dict()) == keys
        assert _difference(case.run(merged), adapted) < 1e-5
    assert _difference(adapted, plain) > 1e-4


@pytest.mark.parametrize("name", [*OURS, *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n not in OURS)])
@pytest.mark.parametrize("targets", ["all-linear", "named"])
def test_pefts_adapters_reach_what_they_are_given(name: str, targets: str) -> None:
    case = _case(name)
    chosen: Any = targets
    if targets == "named":  # convolutions too, such as the patch embedding
        chosen = [n for n, m in case.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    base = copy.deepcopy(case.model)
    model = peft.get_peft_model(case.model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=chosen))
    adapted = model.base_model.model
    _every_adapter_works(adapted, case)
    with torch.no_grad():
        before = case.run(adapted)
        assert _difference(before, case.run(base)) > 1e-4
        assert _difference(case.run(model.merge_and_unload()), before) < 1e-5


class _Doubled(nn.Module):
    """Stands in a layer's place, and has no weight to be read."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrapper_in_a_layers_place_is_called(name: str, train: bool, dtype: torch.dtype) -> None:
    case = _case(name, dtype)
    wrapped = copy.deepcopy(case.model)
    for place, module in list(wrapped.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            wrapped.set_submodule(place, _Doubled(module))
            layer = case.model.get_submodule(place)
            layer.weight.data.mul_(2)
            if layer.bias is not None:
                layer.bias.data.mul_(2)
    with torch.set_grad_enabled(train):
        want, got = case.run(case.model), case.run(wrapped)
    # in bfloat16 each layer rounds anew; a layer passed over would be off by half
    assert _difference(got.float(), want.float()) < (1e-5 if dtype == torch.float32 else 0.1)


def _never_computed(name: str, place: str, module: nn.Module) -> bool:
    """What no forward pass of the reference calls either."""
    if isinstance(module, nn.Identity) or (name == "mae" and "head_drop" in place):  # a layer that this model lacks
        return True
    return name.startswith("sam,") and isinstance(module, nn.Embedding)  # learned tokens: Meta's code reads them too


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_listens_to_a_leaf_hears_it(name: str, train: bool, dtype: torch.dtype) -> None:
    case = _case(name, dtype)
    leaves = {n: m for n, m in case.model.named_modules() if n and not list(m.children())}
    with torch.set_grad_enabled(train):
        alone = case.run(case.model)
        heard: set[str] = set()
        for place, module in leaves.items():
            module.register_forward_hook(lambda *_, place=place: heard.add(place))
        got = case.run(case.model)
    silent = {n for n, m in leaves.items() if n not in heard and not _never_computed(name, n, m)}
    assert not silent
    assert _difference(got.float(), alone.float()) < (1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("name", OURS)
def test_dynamic_quantisation_finds_every_linear_layer(name: str) -> None:
    case = _case(name)
    linear = sum(isinstance(m, nn.Linear) for m in case.model.modules())
    assert all(type(m) is nn.Linear for m in case.model.modules() if isinstance(m, nn.Linear))
    quantised = torch.ao.quantization.quantize_dynamic(case.model, {nn.Linear}, dtype=torch.qint8)
    assert (
        sum(type(m).__name__ == "Linear" and "quantized" in type(m).__module__ for m in quantised.modules()) == linear
    )
    with torch.no_grad():
        want, got = case.run(case.model), case.run(quantised)
    assert torch.cosine_similarity(got, want, dim=0) > 0.98


def test_pruning_and_parametrisations_take_part() -> None:
    from torch.nn.utils import parametrizations, prune

    for change in (lambda m: prune.l1_unstructured(m, "weight", 0.5), parametrizations.weight_norm):
        case = _case("vit")
        changed = copy.deepcopy(case.model)
        for module in list(changed.modules()):
            if isinstance(module, nn.Linear | nn.Conv2d):
                change(module)
        with torch.no_grad():
            fused = case.run(changed)
        with torch.enable_grad():
            assert _difference(fused, case.run(changed)) < 1e-5
