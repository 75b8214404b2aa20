"""Every ViT flavour against timm's own, same perturbed weights, at full width and two blocks: outputs and gradients."""

from __future__ import annotations

import pytest
import timm
import torch
from backbone_checks import assert_close, perturb
from torch import Tensor, nn
from vit_twins import DEPTH, META_NORM, pictures, shallow, twins

#: One model of each flavour, and the pixels of the test; every part that a ViT can be made of is in one of them.
FLAVOURS: dict[str, int] = {
    "vit_small_patch16_224": 96,
    "vit_base_patch8_224": 48,
    "vit_base_patch32_224": 128,
    "vit_medium_patch16_gap_256": 96,
    "vit_medium_patch16_reg4_gap_256": 96,
    "deit_small_patch16_224": 96,
    "deit_small_distilled_patch16_224": 96,
    "deit3_small_patch16_224": 96,
    "vit_small_patch14_dinov2": 98,
    "vit_small_patch14_reg4_dinov2": 98,
    "vit_giant_patch14_reg4_dinov2": 56,
    "vit_base_patch16_clip_224": 96,
    "vit_base_patch16_clip_quickgelu_224": 96,
    "vit_base_patch16_siglip_224": 96,
    "vit_base_patch16_siglip_gap_224": 96,
    "vit_so400m_patch14_siglip_384": 70,
    "vit_so400m_patch16_siglip_256": 64,
    "vit_small_patch16_rope_224": 96,
    "vit_small_patch16_rope_ape_224": 96,
    "vit_small_patch16_rope_mixed_224": 96,
    "vit_medium_patch16_rope_reg1_gap_256": 96,
    "vit_mediumd_patch16_rope_reg1_gap_256": 96,
    "vit_small_patch16_dinov3": 96,
    "vit_small_plus_patch16_dinov3_qkvb": 96,
    "beit_base_patch16_224": 96,
    "beitv2_large_patch16_224": 64,
    "samvit_base_patch16": 256,
    "samvit_base_patch16_224": 224,
}
#: Wide, or another patch size alone: in the slow suite.
WIDE = {
    "vit_base_patch8_224",
    "vit_base_patch32_224",
    "vit_giant_patch14_reg4_dinov2",
    "vit_so400m_patch14_siglip_384",
    "beitv2_large_patch16_224",
}


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    """A number that depends on every feature."""
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    weights = torch.linspace(-1, 1, features.numel()).view(features.shape)
    return (features * weights).mean() + (pooled**2).mean()


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in WIDE else n for n in FLAVOURS])
def test_same_features_and_gradients_as_timm(name: str) -> None:
    ours, theirs = twins(name, FLAVOURS[name])
    inputs = [pictures(FLAVOURS[name]).requires_grad_() for _ in range(2)]
    for model, x in zip((ours, theirs), inputs, strict=True):
        model.zero_grad(set_to_none=True)
        (30 * _loss(model, x)).backward()
    with torch.no_grad():
        x = inputs[0].detach()
        out, reference = ours(x), theirs.forward_features(x)
        assert_close(ours.forward_features(x), reference)
        assert_close(out.pooled, theirs.forward_head(reference, pre_logits=True))
    if reference.ndim == 4:
        assert_close(out.grid, reference)
    else:
        p = ours.num_prefix_tokens
        assert_close(out.prefix, reference[:, :p])
        assert_close(out.grid.flatten(2).transpose(1, 2), reference[:, p:])
    assert_close(inputs[0].grad, inputs[1].grad, 1e-4)
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        if expected[key].grad is None:
            assert parameter.grad is None, key
        else:
            assert_close(parameter.grad, expected[key].grad, 1e-4)
    ours.zero_grad(set_to_none=True)
    theirs.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_small_patch16_dinov3"])
def test_same_in_float64(name: str) -> None:
    torch.manual_seed(0)
    # timm's DINOv3 keeps a float32 rotation table unless it makes one for each size (its other RoPE models always do).
    theirs = perturb(timm.create_model(name, num_classes=0, img_size=64, depth=DEPTH, dynamic_img_size=True)).double()
    ours = shallow(name, image_size=(64, 64)).double()
    ours.load_state_dict(theirs.state_dict())
    x = pictures(64).double()
    with torch.no_grad():
        assert_close(ours.eval()(x).pooled, theirs.eval()(x), 1e-10)


@pytest.mark.long
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "samvit_base_patch16"])
def test_relative_positions_same_in_float64(name: str) -> None:
    size = 64 if name.startswith("beit") else 256
    torch.manual_seed(0)
    options = {} if name.startswith("beit") else {"global_attn_indexes": (1,), **META_NORM}
    theirs = perturb(timm.create_model(name, num_classes=0, img_size=size, depth=DEPTH, **options)).double()
    ours = shallow(name, image_size=(size, size)).double()
    ours.load_state_dict(theirs.state_dict())
    x = pictures(size).double()
    with torch.no_grad():
        assert_close(ours.eval().forward_features(x), theirs.eval().forward_features(x), 1e-10)


def test_distilled_logits_in_both_modes() -> None:
    """Our logits are the mean of both heads in both modes; timm gives the pair when it is told to train them apart."""
    name = "deit_small_distilled_patch16_224"
    torch.manual_seed(0)
    theirs = perturb(timm.create_model(name, num_classes=7, img_size=64, depth=DEPTH))
    ours = shallow(name, image_size=(64, 64))
    ours.reset_classifier(7)
    ours.load_state_dict(theirs.state_dict())
    x = pictures(64)
    for mode in (True, False):
        ours.train(mode)
        theirs.train(mode)
        with torch.no_grad():
            logits = ours.forward_head(ours.forward_features(x))
            assert_close(logits, theirs(x))
    theirs.set_distilled_training(True)
    with torch.no_grad():
        pair = theirs.train()(x)
    assert_close(logits, (pair[0] + pair[1]) / 2)


def test_qk_norm() -> None:
    torch.manual_seed(0)
    theirs = perturb(timm.create_model("vit_small_patch16_224", num_classes=0, img_size=64, depth=DEPTH, qk_norm=True))
    ours = shallow("vit_small_patch16_qknorm_224", image_size=(64, 64))
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert_close(ours.eval()(pictures(64)).pooled, theirs.eval()(pictures(64)))


def test_sincos_positions_are_a_fixed_plain_table() -> None:
    ours = shallow("vit_small_patch16_sincos_224", image_size=(64, 64))
    assert isinstance(ours.pos_embed, nn.Parameter)
    assert not ours.pos_embed.requires_grad
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0, img_size=64, depth=DEPTH)
    table = ours.pos_embed.clone()
    perturb(theirs)
    state = {**theirs.state_dict(), "pos_embed": table}
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    with torch.no_grad():
        assert_close(ours.eval()(pictures(64)).pooled, theirs.eval()(pictures(64)))


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_small_patch16_dinov3"])
def test_pooling_can_be_changed_as_in_timm(name: str, pool: str) -> None:
    torch.manual_seed(0)
    ours = shallow(name, image_size=(64, 64))
    theirs = timm.create_model(name, num_classes=0, img_size=64, depth=DEPTH)
    perturb(theirs)
    ours.load_state_dict(theirs.state_dict())
    ours.reset_classifier(5, pool)
    theirs.reset_classifier(5, pool)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    x = pictures(64)
    with torch.no_grad():
        assert_close(ours.eval().forward_head(ours.forward_features(x)), theirs.eval()(x))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "samvit_base_patch16", "vit_small_patch16_dinov3"])
def test_classifier_has_timms_keys_and_logits(name: str) -> None:
    size = 256 if name.startswith("samvit") else 64
    theirs = timm.create_model(name, num_classes=5, img_size=size, depth=DEPTH, **_sam_options(name))
    perturb(theirs)
    ours = shallow(name, image_size=(size, size))
    ours.reset_classifier(5)
    ours.load_state_dict(theirs.state_dict())
    x = pictures(size)
    with torch.no_grad():
        assert_close(ours.eval().forward_head(ours.forward_features(x)), theirs.eval()(x))
    assert ours.head_keys() == {k for k in theirs.state_dict() if k.startswith("head.")}


def _sam_options(name: str) -> dict[str, object]:
    return {"global_attn_indexes": (1,), **META_NORM} if name.startswith("samvit") else {}


def test_deep_models_build_with_every_residual_scaled() -> None:
    """BEiT's start: the last weight of both branches of block i is divided by sqrt(2 i)."""
    torch.manual_seed(0)
    model = shallow("beit_base_patch16_224", parts={"depth": 4}, image_size=(32, 32))
    for i, block in enumerate(model.blocks, start=1):
        assert block.attn.proj.weight.std().item() * (2 * i) ** 0.5 == pytest.approx(0.02, rel=0.05)
        assert block.mlp.fc2.weight.std().item() * (2 * i) ** 0.5 == pytest.approx(0.02, rel=0.05)
