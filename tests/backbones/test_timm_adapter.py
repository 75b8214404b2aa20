"""``timm/<name>``: the same numbers as timm, and what timm knows of its models under our names."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from backbone_checks import assert_close, build, images, perturb
from timm.optim import param_groups_layer_decay
from torch import nn

import visionzoo as vz
from visionzoo.backbones.base import Backbone
from visionzoo.backbones.timm_adapter import timm_spec
from visionzoo.weights.preprocessing import timm_preprocess


def test_the_model_is_timms_own() -> None:
    model = vz.create_backbone("timm/test_resnet")
    assert isinstance(model, timm.models.ResNet)
    assert isinstance(model, Backbone)
    assert model.name == model.info.name == "timm/test_resnet"
    assert model.info.family == "resnet"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/resnet50.a1_in1k", {"crop_pct": 0.95, "interpolation": "bicubic", "resize_mode": "shortest"}),
        ("timm/resnet50.tv_in1k", {"crop_pct": 0.875, "interpolation": "bilinear"}),
        ("timm/vit_so400m_patch14_siglip_378.webli_ft_in1k", {"resize_mode": "squash", "mean": (0.5, 0.5, 0.5)}),
        ("timm/vit_base_patch16_224.orig_in21k", {"mean": (0.5, 0.5, 0.5), "image_size": (224, 224)}),
        ("timm/efficientnet_b0.ra_in1k", {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}),
    ],
)
def test_the_tag_sets_the_preprocessing(name: str, expected: dict[str, Any]) -> None:
    info = vz.backbone_info(name)
    assert {k: getattr(info.preprocess, k) for k in expected} == expected
    assert info.weights == f"timm:{name.removeprefix('timm/')}"


@pytest.mark.parametrize(
    "name", ["resnet50.a1_in1k", "mobilenetv4_conv_small.e2400_r224_in1k", "deit3_small_patch16_224"]
)
@pytest.mark.parametrize("test_size", [False, True])
def test_preprocessing_agrees_with_timms_data_config(name: str, test_size: bool) -> None:
    cfg = timm.models.get_pretrained_cfg(name)
    theirs = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict(), use_test_size=test_size)
    size = theirs["input_size"][1:]
    ours = vz.backbone_info(f"timm/{name}", image_size=size if test_size else None).preprocess
    assert ours.image_size == size
    for field in ("mean", "std", "interpolation", "crop_pct"):
        assert getattr(ours, field) == theirs[field]


@pytest.mark.long
def test_padding_is_the_mean_as_in_timm() -> None:
    preprocess = vz.backbone_info("timm/deepseek_vit_412m.deepseek_v4_1_flash").preprocess
    assert (preprocess.resize_mode, preprocess.pad_value) == ("longest", (128, 128, 128))


def test_every_pretrained_config_can_be_said() -> None:
    """Whatever timm has published: its interpolation, crop mode, crop share and statistics are ours to state."""
    names = timm.list_pretrained()
    assert len(names) > 1000
    for name in names:
        cfg = timm.models.get_pretrained_cfg(name)
        spec = timm_preprocess(cfg.to_dict(), tuple(cfg.input_size[1:]))
        assert (spec.mean, spec.std, spec.crop_pct) == (tuple(cfg.mean), tuple(cfg.std), cfg.crop_pct)
        assert timm_spec(f"timm/{name}").weights in (f"timm:{name}", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5O", r"has no model 'resnet5O'; did you mean .*timm/resnet50"),
        ("timm/qqqq", r"has no model 'qqqq'; timm.list_models\(\) lists them"),
        ("timm/resnet50.a1_in1q", r"no pretrained tag 'a1_in1q' for 'resnet50'; known are .*a1_in1k"),
        ("timm/hf-hub:timm/resnet50", r"has no model"),
        ("timm/qwen3_vit_306m_enc", r"choose a classification model"),
        ("timm/mobilenetv5_300m_enc", r"is an encoder without pooled features"),
    ],
)
def test_names_that_do_not_work_say_why(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vz.create_backbone(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/vgg11", {"drop_path": 0.1}, r"timm/vgg11 has no stochastic depth; use drop_path=0"),
        (
            "timm/efficientformer_l1",
            {"image_size": 256},
            r"timm cannot build efficientformer_l1 with image_size=\(256, 256\)",
        ),
        (
            "timm/maxvit_nano_rw_256",
            {"image_size": 200},
            r"timm cannot build maxvit_nano_rw_256 with image_size=\(200, 200\)",
        ),
        ("timm/vit_tiny_patch16_224", {"image_size": 8}, r"image_size=\(8, 8\)"),
        ("timm/csatv2", {"in_chans": 5}, r"in_chans=5"),
    ],
)
def test_options_that_a_model_cannot_take(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vz.create_backbone(name, **options)


def test_options_reach_timm() -> None:
    model = vz.create_backbone("timm/convnext_atto", drop_path=0.3, in_chans=5)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates)
    assert model.state_dict()[model.stem_key].shape[1] == 5
    sized = vz.create_backbone("timm/test_vit", image_size=(64, 96))
    assert sized.image_size == sized.preprocess.image_size == (64, 96)
    assert sized(torch.zeros(1, 3, 64, 96)).grid.shape[2:] == (4, 6)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (65, 130), (160, 160)])
@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet"])
def test_any_size_means_any_size(name: str, size: tuple[int, int]) -> None:
    model = build(name)
    assert "any_size" in model.capabilities
    features = model(torch.randn(1, 3, *size))
    h, w = (-(-s // model.stride) for s in size)
    assert features.grid.shape == (1, model.grid_dim, h, w)


def test_dynamic_size_changes_nothing_at_the_built_size() -> None:
    model = build("timm/vit_tiny_patch16_224")
    twin = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    assert model.dynamic_img_size
    assert not twin.dynamic_img_size
    twin.load_state_dict(model.state_dict())
    x = images(model)
    with torch.no_grad():
        assert torch.equal(model.forward_features(x), twin.forward_features(x))


@pytest.mark.parametrize(
    ("name", "pooled", "grid"),
    [("timm/vgg11", 4096, 512), ("timm/mobilenetv3_small_050", 1024, 288), ("timm/resnet18", 512, 512)],
)
def test_pooled_and_grid_widths_may_differ(name: str, pooled: int, grid: int) -> None:
    info = vz.backbone_info(name)
    assert (info.pooled_dim, info.grid_dim) == (pooled, grid)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "test_mambaout", "pvt_v2_b0", "xcit_nano_12_p16_224"])
def test_grid_is_in_raster_order(name: str) -> None:
    """A patch of noise in one corner moves the features of that corner most, in the row and column where it is."""
    model = build(f"timm/{name}")
    flat = torch.zeros(1, 3, *model.image_size)
    changed = flat.clone()
    changed[..., -32:, :32] = 3 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))  # bottom left
    with torch.no_grad():
        change = (model(changed).grid - model(flat).grid).norm(dim=1)[0]
    h, w = change.shape
    assert change[h // 2 :, : w // 2].mean() > 1.1 * change[: h // 2, w // 2 :].mean()
    assert divmod(int(change.argmax()), w)[0] >= h // 2
    assert divmod(int(change.argmax()), w)[1] < w / 2


def test_pit_gives_a_grid_though_its_trunk_drops_it() -> None:
    model = build("timm/pit_ti_224", 64)
    features = model(images(model))
    assert features.prefix.shape[1] == 1
    assert_close(features.grid, model.pyramid(images(model))[-1])
    with pytest.raises(ValueError, match="call the backbone for its grid"):
        model.split(model.forward_features(images(model)), model.image_size)


def test_tokens_that_form_no_grid_are_an_error() -> None:
    model = build("timm/mixer_s32_224", 64)
    with pytest.raises(ValueError, match=r"gave 5 tokens, which fit no 32-pixel grid of a 64x64 image"):
        model.split(torch.zeros(1, 5, 512), (64, 64))


# Heads, groups and switches come from timm.


HEADED = [
    "test_resnet",
    "test_vit",
    "convnext_atto",
    "mobilenetv3_small_050",
    "vgg11",
    "deit_tiny_distilled_patch16_224",
    "levit_128s",
    "caformer_s18",
    "efficientvit_b0",
    "repvit_m0_9",
    "pvt_v2_b0",
    "hiera_tiny_224",
]


@pytest.mark.parametrize("name", HEADED)
def test_head_keys_are_timms(name: str) -> None:
    with torch.device("meta"):
        model = vz.create_backbone(f"timm/{name}")
        trunk = set(model.state_dict())
        assert model.head_keys() == set()
        model.reset_classifier(7)
        reference = {k: v.shape for k, v in timm.create_model(name, num_classes=7).state_dict().items()}
    assert {k: v.shape for k, v in model.state_dict().items()} == reference
    assert model.head_keys() == set(reference) - trunk
    assert model.num_classes == 7
    with torch.device("meta"):
        model.reset_classifier(0)
    assert set(model.state_dict()) == trunk


def test_classifier_gives_timms_logits() -> None:
    model = vz.create_classifier("timm/test_vit", num_classes=5).eval()
    perturb(model)
    twin = timm.create_model("test_vit", num_classes=5).eval()
    twin.load_state_dict(model.state_dict())
    x = images(model)
    with torch.no_grad():
        assert_close(model(x), twin(x))
    assert isinstance(model.get_classifier(), nn.Linear)
    assert model.get_classifier().out_features == 5


def test_changed_pooling_changes_what_the_head_reads() -> None:
    model = vz.create_backbone("timm/test_resnet")
    before = model.pooled_dim
    model.reset_classifier(3, "catavgmax")
    assert model.pooled_dim == 2 * before
    assert model(images(model)).pooled.shape[1] == 2 * before


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "convnext_atto", "hiera_tiny_224"])
def test_layer_decay_groups_are_timms(name: str) -> None:
    with torch.device("meta"):
        model, twin = vz.create_backbone(f"timm/{name}"), timm.create_model(name, num_classes=0)
    ours, theirs = (param_groups_layer_decay(m, weight_decay=0.1, layer_decay=0.5) for m in (model, twin))
    assert len(ours) > 2
    summary = [[(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in groups] for groups in (ours, theirs)]
    assert summary[0] == summary[1]
    assert model.no_weight_decay() == set(getattr(twin, "no_weight_decay", set)())


def test_no_layer_groups_is_a_clear_error() -> None:
    with torch.device("meta"):
        model = vz.create_backbone("timm/poolformer_s12")
    with pytest.raises(ValueError, match="describes no layer groups for timm/poolformer_s12"):
        model.group_matcher()


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet"])
def test_grad_checkpointing_gives_equal_gradients(name: str) -> None:
    torch.manual_seed(0)
    plain = perturb(vz.create_backbone(name)).eval()
    saving = vz.create_backbone(name).eval()
    saving.load_state_dict(plain.state_dict())
    saving.set_grad_checkpointing()
    assert saving.grad_checkpointing
    for model in (plain, saving):
        model(images(plain)).pooled.square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            assert_close(b.grad, a.grad)


# Weights of another input size.


def test_position_table_of_another_size_is_resampled() -> None:
    """The resampled table at 64 pixels is what the model of 160 pixels uses for an image of 64."""
    large, small = build("timm/test_vit"), vz.create_backbone("timm/test_vit", image_size=64).eval()
    stored = large.state_dict()
    adapted, notes = small.adapt_state_dict(stored)
    assert notes == ["pos_embed resampled from (1, 101, 64) to (1, 17, 64)"]
    assert stored["pos_embed"].shape == (1, 101, 64)
    small.load_state_dict(adapted)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(small(x).pooled, large(x).pooled)


def test_only_position_tables_are_bent() -> None:
    """A weight of another shape stays as it is, so that the strict comparison can refuse it."""
    model = vz.create_backbone("timm/test_vit")
    stored = dict(model.state_dict())
    stored["patch_embed.proj.weight"] = torch.zeros(64, 3, 32, 32)
    adapted, notes = model.adapt_state_dict(stored)
    assert notes == []
    assert adapted["patch_embed.proj.weight"].shape == (64, 3, 32, 32)
    assert model.adapt_state_dict({"pos_embed": torch.zeros(1, 5, 7)})[1] == []


def test_weights_load_from_timms_model() -> None:
    twin = perturb(timm.create_model("test_resnet"))
    model = vz.create_backbone("timm/test_resnet")
    report = vz.load_weights(model, twin.state_dict())
    assert report.loaded == report.total
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())
    gray = vz.create_backbone("timm/test_resnet", in_chans=1)
    with pytest.raises(ValueError, match="in_chans_policy"):
        vz.load_weights(gray, twin.state_dict())
