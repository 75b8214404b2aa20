"""Native Swin against timm and the papers, with every parameter perturbed."""

from __future__ import annotations

import pytest
import timm
import torch
from backbone_checks import assert_close, perturb
from timm.models._manipulate import group_parameters
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from torch import nn

import visionzoo as vz
from visionzoo.backbones.swin import SwinConfig, SwinTransformer
from visionzoo.backbones.swin_variants import VARIANTS
from visionzoo.types import Preprocess

PUBLISHED = [v[0] for v in VARIANTS if v[5]]

#: version, image, window, depths, heads, width, pretrained windows: each kind of window, with and without a shift
FLAVOURS = {
    "v1-window7": (1, (112, 112), 7, (2, 2), (2, 4), 32, ()),
    "v1-window12": (1, (96, 96), 12, (2, 1), (2, 4), 32, ()),
    "v1-not-square": (1, (64, 96), 4, (2, 2, 2), (1, 2, 4), 16, ()),
    "v1-full-width": (1, (112, 112), 7, (2, 2, 2), (3, 6, 12), 96, ()),
    "v2-window8": (2, (64, 64), 8, (2, 2), (2, 4), 32, ()),
    "v2-window16-shrunk": (2, (128, 128), 16, (2, 2, 1), (2, 4, 4), 16, ()),
    "v2-window12to16": (2, (128, 128), 16, (2, 2), (2, 4), 32, (12, 6)),
    "v2-not-square": (2, (64, 96), 4, (2, 2), (1, 2), 16, ()),
}


def twins(flavour: str, num_classes: int = 0, dtype: torch.dtype = torch.float32) -> tuple[SwinTransformer, nn.Module]:
    """Ours and timm's with the same perturbed weights."""
    version, image, window, depths, heads, width, pretrained = FLAVOURS[flavour]
    torch.manual_seed(0)
    config = SwinConfig(
        version=version,
        embed_dim=width,
        depths=depths,
        num_heads=heads,
        window=window,
        pretrained_windows=pretrained,
    )
    ours = SwinTransformer(config, Preprocess(image_size=image))
    ours.reset_classifier(num_classes)
    options = {"img_size": image, "window_size": window, "embed_dim": width, "depths": depths, "num_heads": heads}
    options |= {"num_classes": num_classes, "drop_path_rate": 0.0}
    if version == 1:
        theirs = TimmSwin(**options)
    else:
        theirs = TimmSwinV2(**options, pretrained_window_sizes=pretrained or (0,) * len(depths))
    # Ours, since timm's buffers are constants (masks, distances) that are not in the state dict.
    perturb(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval().to(dtype), theirs.eval().to(dtype)


def batch(model: SwinTransformer, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, *model.image_size, generator=generator).to(dtype)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_forward_and_gradients_equal_timms(flavour: str) -> None:
    ours, theirs = twins(flavour)
    x = batch(ours)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, reference = ours.forward_features(x_ours), theirs.forward_features(x_theirs)
    assert_close(out, reference)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * weight).sum().backward()
    (reference * weight).sum().backward()
    grads = {n: p.grad for n, p in theirs.named_parameters()} | {"images": x_theirs.grad}
    for name, grad in ({n: p.grad for n, p in ours.named_parameters()} | {"images": x_ours.grad}).items():
        assert grads[name].abs().max() > 0, name
        error = (grad - grads[name]).abs().max() / grads[name].abs().max()
        assert error < 1e-4, f"gradient of {name} differs by {error:.1e}"
    # Without a gradient for the bias, attention takes its fused path.
    x_fused = x.clone().requires_grad_()
    fused = ours.requires_grad_(False).forward_features(x_fused)
    assert_close(fused, reference)
    (fused * weight).sum().backward()
    assert (x_fused.grad - x_theirs.grad).abs().max() < 1e-4 * x_theirs.grad.abs().max()


@pytest.mark.parametrize("flavour", ["v1-not-square", "v2-not-square"])
def test_forward_in_double_precision(flavour: str) -> None:
    ours, theirs = twins(flavour, dtype=torch.float64)
    x = batch(ours, torch.float64)
    with torch.no_grad():
        reference = theirs.forward_features(x)
        # timm keeps v2's table of distances, computed in single precision, as a buffer.
        assert_close(ours.forward_features(x), reference, tol=1e-10)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_head_equals_timms(pool: str) -> None:
    ours, theirs = twins("v1-not-square", num_classes=5)
    assert ours.head_keys() == {"head.fc.weight", "head.fc.bias"}
    for model in (ours, theirs):
        torch.manual_seed(3)
        model.reset_classifier(7, pool)
    ours.get_classifier().load_state_dict(theirs.get_classifier().state_dict())
    x = batch(ours)
    with torch.no_grad():
        features = theirs.forward_features(x)
        assert_close(ours.forward_head(ours.forward_features(x)), theirs.forward_head(features))
        assert_close(ours(x).pooled, theirs.forward_head(features, pre_logits=True))
    assert ours.num_classes == 7
    ours.reset_classifier(0)
    assert ours.head_keys() == set()


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="global_pool='token' must be one of avg, max, avgmax"):
        twins("v1-not-square")[0].reset_classifier(3, "token")


@pytest.mark.parametrize("flavour", ["v1-window7", "v2-window16-shrunk"])
def test_pyramid_equals_timms(flavour: str) -> None:
    ours, theirs = twins(flavour)
    x = batch(ours)
    with torch.no_grad():
        levels = ours.pyramid(x)
        for a, b in zip(levels, theirs.forward_intermediates(x, intermediates_only=True), strict=True):
            assert_close(a, b)
        # The grid is the last level after the final norm.
        normed = ours.norm(levels[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert_close(ours(x).grid, normed)
    for level, stated in zip(levels, ours.pyramid_levels, strict=True):
        assert level.shape[1:] == (stated.channels, *(n // stated.stride for n in ours.image_size))


# The registered names.


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_names_keys_and_groups_are_timms(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = vz.create_backbone(name), timm.create_model(name, num_classes=0)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.no_weight_decay() == theirs.no_weight_decay()
    for coarse in (False, True):
        a, b = (group_parameters(m, m.group_matcher(coarse=coarse), reverse=True) for m in (ours, theirs))
        assert a == b
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)
    for ours_stage, theirs_stage in zip(ours.layers, theirs.layers, strict=True):
        assert (ours_stage.window,) * 2 == theirs_stage.blocks[0].window_size
        if "v2" in name:
            attn = theirs_stage.blocks[0].attn
            told = attn.pretrained_window_size if any(attn.pretrained_window_size) else attn.window_size
            assert (ours_stage.blocks[0].attn.pretrained_window,) * 2 == told


@pytest.mark.parametrize("name", PUBLISHED)
def test_preprocessing_is_timms(name: str) -> None:
    info = vz.backbone_info(name)
    cfg = timm.get_pretrained_cfg(info.weights.removeprefix("timm:"))
    preprocess = info.preprocess
    assert cfg.input_size[1:] == preprocess.image_size == info.image_size
    assert (cfg.mean, cfg.std) == (preprocess.mean, preprocess.std)
    assert (cfg.crop_pct, cfg.interpolation) == (preprocess.crop_pct, preprocess.interpolation)
    assert (cfg.crop_mode, preprocess.resize_mode) == ("center", "shortest")
    assert cfg.license == info.licence
    # The same weights, under the tag that timm takes for the bare name.
    assert timm.get_pretrained_cfg(name).tag == cfg.tag


#: Millions of parameters with the classifier, and GMACs, as printed: arXiv 2103.14030, table 1; arXiv 2111.09883,
#: table 5; and Microsoft's model zoo for what these leave out.
PAPER = {
    "swin_tiny_patch4_window7_224": (29, 4.5),
    "swin_small_patch4_window7_224": (50, 8.7),
    "swin_base_patch4_window7_224": (88, 15.4),
    "swin_base_patch4_window12_384": (88, 47.0),
    "swin_large_patch4_window7_224": (197, 34.5),
    "swin_large_patch4_window12_384": (197, 103.9),
    "swinv2_tiny_window8_256": (28, 5.9),
    "swinv2_tiny_window16_256": (28, 6.6),
    "swinv2_small_window8_256": (50, 11.5),
    "swinv2_small_window16_256": (50, 12.6),
    "swinv2_base_window8_256": (88, 20.3),
    "swinv2_base_window16_256": (88, 21.8),
    "swinv2_base_window12to16_192to256": (88, 21.8),
    "swinv2_base_window12to24_192to384": (88, 54.7),
    "swinv2_large_window12to16_192to256": (197, 47.5),
    "swinv2_large_window12to24_192to384": (197, 115.4),
}


@pytest.mark.parametrize("name", PAPER)
def test_numbers_of_the_papers(name: str) -> None:
    millions, gmacs = PAPER[name]
    info = vz.backbone_info(name)
    # Printed without decimals; Swin-T is 28.3 M and printed as 29 in one paper, as 28 in the other.
    assert (info.params + info.embed_dim * 1000 + 1000) / 1e6 == pytest.approx(millions, abs=0.75)
    assert info.gmacs == pytest.approx(gmacs, rel=0.015)


# What a fresh model starts from, and how it trains.


def test_initial_values() -> None:
    torch.manual_seed(0)
    v1, v2 = (vz.create_backbone(f"{v}_nano_patch2_window4_32") for v in ("swin", "swinv2"))
    for model in (v1, v2):
        for name, p in model.named_parameters():
            assert p.isfinite().all(), name
        assert model.layers[1].blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not model.layers[1].blocks[0].mlp.fc1.bias.any()
    assert v1.layers[0].blocks[0].attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.2)
    assert not any(b.norm2.weight.any() for b in v2.layers[0].blocks)
    assert v2.layers[0].blocks[0].attn.logit_scale.exp().allclose(torch.tensor(10.0))
    x = torch.randn(1, 3, 32, 32)
    tokens = v2.patch_embed(x)
    # Norms of zero weight make each block of v2 the identity at first.
    torch.testing.assert_close(v2.layers[0](tokens.view(1, 16, 16, -1)).flatten(1, 2), tokens)


def test_drop_path_rises_linearly() -> None:
    model = vz.create_backbone("swin_nano_patch2_window4_32", drop_path=0.2)
    rates = [b.drop_path1.rate for s in model.layers for b in s.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.2, 6))
    assert rates == [b.drop_path2.rate for s in model.layers for b in s.blocks]


def test_drop_path_drops_whole_samples() -> None:
    model = vz.create_backbone("swin_nano_patch2_window4_32", drop_path=0.9).train()
    block = perturb(model).layers[2].blocks[1]
    x, layout = torch.randn(64, 4, 4, 128), model.layers[2].layouts((4, 4), torch.empty(0))[1]
    changed = (block(x, layout) != x).flatten(1).any(dim=1)
    assert 0 < changed.sum() < 40  # a branch survives with 0.1, so about 12 of 64 samples change


def test_configuration_is_checked() -> None:
    good = {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window": 4}
    for bad, message in (
        ({"version": 3}, "version=3 must be 1 or 2"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"num_heads": (2,)}, "num_heads=.* one value for each"),
        ({"pretrained_windows": (12,)}, "pretrained_windows=.* one value for each"),
        ({"num_heads": (2, 3)}, "width 64 of stage 1 must be a multiple of its 3 heads"),
    ):
        with pytest.raises(ValueError, match=message):
            SwinConfig(**(good | bad))
