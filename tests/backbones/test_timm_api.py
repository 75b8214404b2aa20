"""timm's tools on the native backbones, against timm's own models with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

import visionzoo as vz

VITS = ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224"]
SWINS = ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"]


def pair(name: str, size: int | None = None) -> tuple[Any, Any]:
    """Ours and timm's, every tensor of both the same and none zero; ViTs are cut to three blocks."""
    torch.manual_seed(0)
    more: dict[str, Any] = {} if size is None else {"img_size": size}
    theirs: Any = timm.create_model(name, num_classes=0, **more).eval()
    ours: Any = vz.create_backbone(name, image_size=size).eval()
    if hasattr(theirs, "blocks"):
        ours.blocks, theirs.blocks = ours.blocks[:3], theirs.blocks[:3]
        theirs.feature_info = theirs.feature_info[:3]
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor += 0.02 * torch.randn_like(tensor)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    return ours, theirs


def same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert (ours - theirs).abs().max() <= 2e-5 * max(1, float(theirs.abs().max()))
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            same(ours[key], theirs[key])
    else:
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)


OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "last two": {"indices": 2},
    "some, with the norm": {"indices": [0, -1], "norm": True},
    "stopped": {"indices": [0, 1], "stop_early": True},
    "only": {"indices": [1], "intermediates_only": True},
}
OF_VITS: dict[str, dict[str, Any]] = {
    "tokens": {"output_fmt": "NLC", "indices": 2},
    "prefix": {"return_prefix_tokens": True, "norm": True},
    "named": {"output_dict": True, "return_prefix_tokens": True},
}


HEAVY = ("beit_base_patch16_224", "swinv2_tiny_window8_256", "vit_base_patch16_siglip_224")


def heavy_are_slow(names: Sequence[str]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in names]


@pytest.mark.long
@pytest.mark.parametrize("name", heavy_are_slow([*VITS, *SWINS]))
@torch.no_grad()
def test_intermediates_are_timms(name: str) -> None:
    ours, theirs = pair(name)
    x = torch.randn(2, 3, *ours.image_size)
    cases = OPTIONS if name in SWINS else OPTIONS | OF_VITS
    for options in cases.values():
        if "output_dict" in options and name not in VITS[:2]:
            continue  # timm has it for plain ViTs alone
        same(ours.forward_intermediates(x, **options), theirs.forward_intermediates(x, **options))
    assert ours.feature_info == [{k: d[k] for k in ("module", "num_chs", "reduction")} for d in theirs.feature_info]
    same(ours.forward_intermediates(x, indices=1)[0], ours.forward_features(x))


@torch.no_grad()
def test_dinos_interface_is_timms() -> None:
    ours, theirs = pair(VITS[0])
    x = torch.randn(2, 3, 224, 224)
    for options in ({}, {"n": 2, "reshape": True, "norm": True}, {"n": [0, 2], "return_prefix_tokens": True}):
        same(ours.get_intermediate_layers(x, **options), theirs.get_intermediate_layers(x, **options))


def test_layers_that_are_not_there() -> None:
    model: Any = vz.create_backbone("vit_nano_patch4_32")
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"indices=9 asks for the last 9 of \d layers"):
        model.forward_intermediates(x, 9)
    with pytest.raises(ValueError, match=r"there is no layer -30 among"):
        model.forward_intermediates(x, [0, -30])
    with pytest.raises(ValueError, match="output_fmt='NHWC' must be NCHW or NLC"):
        model.forward_intermediates(x, output_fmt="NHWC")
    sam: Any = vz.create_backbone("samvit_base_patch16", image_size=64)
    with pytest.raises(ValueError, match="has no norm behind its blocks"):
        sam.forward_intermediates(torch.randn(1, 3, 64, 64), 1, norm=True)


@pytest.mark.parametrize("name", [VITS[0], SWINS[0], "vit_base_patch16_siglip_224", "vit_base_patch16_clip_224"])
def test_data_configuration_is_timms(name: str) -> None:
    info = vz.backbone_info(name)
    assert info.weights is not None
    with torch.device("meta"):
        ours, theirs = vz.create_backbone(name), timm.create_model(info.weights.removeprefix("timm:"))
        assert resolve_model_data_config(ours) == resolve_model_data_config(theirs)
        assert create_transform(**resolve_model_data_config(ours))
        ours.preprocess = replace(ours.preprocess, mean=(0.1, 0.2, 0.3), resize_mode="squash", interpolation="bilinear")
        found = resolve_model_data_config(ours)
        assert (found["mean"], found["crop_mode"], found["interpolation"]) == ((0.1, 0.2, 0.3), "squash", "bilinear")
        ours.preprocess = replace(ours.preprocess, mean=(100.0,) * 3, std=(50.0,) * 3, value_scale=1.0)
        assert resolve_model_data_config(ours)["mean"] == pytest.approx((100 / 255,) * 3)
        assert ours.default_cfg == ours.pretrained_cfg


def test_a_timm_backbone_follows_its_preprocessing_too() -> None:
    model: Any = vz.create_backbone("timm/resnet18")
    assert model.pretrained_cfg["first_conv"] == "conv1"
    assert model.pretrained_cfg["hf_hub_id"].startswith("timm/resnet18")
    model.preprocess = replace(model.preprocess, mean=(0.1, 0.2, 0.3))
    assert resolve_model_data_config(model)["mean"] == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "name", heavy_are_slow(["vit_tiny_patch16_224", "beit_base_patch16_224", "deit_tiny_distilled_patch16_224"])
)
@torch.no_grad()
def test_another_input_size_is_timms(name: str) -> None:
    ours, theirs = pair(name)
    ours.set_input_size((160, 192))
    theirs.set_input_size((160, 192))
    x = torch.randn(2, 3, 160, 192)
    same(ours.forward_features(x), theirs.forward_features(x))
    assert (ours.image_size, ours.preprocess.image_size) == ((160, 192), (160, 192))
    assert ours.info.image_size == (160, 192)
    assert resolve_model_data_config(ours)["input_size"] == (3, 160, 192)
    fresh: Any = vz.create_backbone(name, image_size=(160, 192))
    fresh.blocks = fresh.blocks[:3]
    fresh.eval().load_state_dict(ours.state_dict())
    same(fresh(x).pooled, ours(x).pooled)
    ours.set_input_size(224)
    assert ours.image_size == (224, 224)


@pytest.mark.long
@torch.no_grad()
def test_another_input_size_of_a_swin_keeps_its_windows() -> None:
    ours: Any = vz.create_backbone(SWINS[0]).eval()
    fresh: Any = vz.create_backbone(SWINS[0], image_size=96).eval()
    fresh.load_state_dict(ours.state_dict())
    ours.set_input_size(96)
    x = torch.randn(1, 3, 96, 96)
    same(ours(x).pooled, fresh(x).pooled)
    assert ours.preprocess.image_size == ours.info.image_size == (96, 96)
    with pytest.raises(ValueError, match=r"window_size=8.*changes its image size alone"):
        ours.set_input_size(96, window_size=8)
    with pytest.raises(ValueError, match="is smaller than the stride"):
        ours.set_input_size(8)
    with pytest.raises(ValueError, match="tables of samvit_base_patch16 are made for its size"):
        vz.create_backbone("samvit_base_patch16", image_size=64).set_input_size(128)  # type: ignore[operator]


@pytest.mark.parametrize("name", heavy_are_slow([VITS[0], VITS[1], "vit_base_patch16_siglip_224", *SWINS]))
@torch.no_grad()
def test_a_classifier_without_pooling_is_timms(name: str) -> None:
    theirs: Any = timm.create_model(name, num_classes=5).eval()
    ours: Any = vz.create_classifier(name, 5).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    x = torch.randn(1, 3, *ours.image_size)
    ours.reset_classifier(0, "")
    theirs.reset_classifier(0, "")
    same(ours(x), theirs(x))
    if name != VITS[1]:  # whose heads read two tokens, whatever the pooling
        assert ours(x).ndim > 2
    bare: Any = vz.create_backbone(name).eval()
    before = bare(x).pooled
    bare.reset_classifier(0, "")
    same(bare(x).pooled, before)  # Features keep their meaning
    if "siglip" not in name:
        ours.reset_classifier(3, "token" if "vit_tiny" in name else "distill" if "deit" in name else "avg")
        assert ours(x).shape == (1, 3)


def test_a_distilled_model_has_two_classifiers() -> None:
    ours: Any = vz.create_classifier(VITS[1], 5)
    assert ours.get_classifier() == (ours.head, ours.head_dist)


def test_features_say_what_to_take() -> None:
    model = vz.create_backbone("vit_nano_patch4_32").eval()
    found: Any = model(torch.randn(2, 3, 32, 32))
    assert repr(found).startswith(
        "Features(pooled=(2, 64) float32, grid=(2, 64, 8, 8) float32, prefix=(2, 1, 64) float32)"
    )
    parts = r"take \.pooled \(B, pooled_dim\) for a classifier, \.grid"
    for wrong in ("shape", "mean", "device"):
        with pytest.raises(AttributeError, match=rf"Features have no '{wrong}': {parts}"):
            getattr(found, wrong)
    for use in (
        lambda: found[:, 0],
        lambda: found * 2,
        lambda: 2 * found,
        lambda: found + 1,
        lambda: torch.ones(2) - found,
        lambda: found @ torch.ones(64),
    ):
        with pytest.raises(TypeError, match=parts):
            use()
    pooled, grid, prefix = found  # what a tuple does it does
    assert found[0] is pooled
    assert found[1:] == (grid, prefix)
    assert found._replace(prefix=None).prefix is None
