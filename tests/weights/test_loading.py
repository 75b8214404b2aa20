"""Loading is strict, says what it did, and changes nothing when it fails."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peers import PAIRS, VIT, images, perturb, timm_model
from torch import Tensor, nn

import visionzoo as vz
from visionzoo.backbones.vit import VisionTransformer, ViTConfig
from visionzoo.types import Preprocess
from visionzoo.weights import LoadReport, export_weights, install_load_hook, load_weights, read_state_dict
from visionzoo.weights.adapters import LAYOUTS, Facts

NANO = "vit_nano_patch4_32"


def nano(**options: Any) -> nn.Module:
    return vz.create_backbone(NANO, **options).eval()


def classifier(num_classes: int = 5, **options: Any) -> nn.Module:
    return vz.create_classifier(NANO, num_classes, **options).eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.fixture(autouse=True)
def no_silent_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_a_model_loads_its_own_weights_from_a_file(tmp_path: Path) -> None:
    source, model = perturb(classifier()), classifier()
    report = load_weights(model, export_weights(source, tmp_path / "a.safetensors"))
    assert (report.layout, report.share, report.reset, report.ignored) == ("timm", 1.0, (), {})
    assert unchanged(model, source.state_dict())
    assert str(report).startswith(f"{NANO} loaded")
    assert "\n" not in str(report)


def test_head_of_another_size_is_reset_aloud(tmp_path: Path) -> None:
    source, model = perturb(classifier(7)), classifier(5)
    before = snapshot(model)
    with pytest.warns(UserWarning, match=r"head of vit_nano_patch4_32 was not loaded.*head\.weight"):
        report = load_weights(model, source.state_dict())
    assert report.reset == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, before["head.weight"])
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert "head.weight" in str(report)


def test_head_may_be_protected(tmp_path: Path) -> None:
    model = classifier(5)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"misshapen \(2\): head\.weight \(7, 64\) instead of \(5, 64\)"):
        load_weights(model, classifier(7).state_dict(), reset_head=False)
    with pytest.raises(ValueError, match=r"missing \(2\): head\.weight, head\.bias"):
        load_weights(model, nano().state_dict(), reset_head=False)
    assert unchanged(model, before)


def test_bare_backbone_ignores_a_stored_head_and_says_so() -> None:
    source, model = perturb(classifier()), nano()
    report = load_weights(model, source.state_dict())
    assert report.share == 1
    assert report.ignored == {"classifier head, which this model does not have": ("head.weight", "head.bias")}


def _edit(**changes: Any) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def apply(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = dict(state)
        for key in changes.get("drop", ()):
            del state[key]
        return state | changes.get("add", {})

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit(drop=["norm.bias", "cls_token"]), r"missing \(2\): cls_token, norm\.bias"),
        (_edit(add={"blocks.9.norm1.weight": torch.ones(3)}), r"unexpected \(1\): blocks\.9\.norm1\.weight"),
        (_edit(add={"norm.bias": torch.ones(3)}), r"misshapen \(1\): norm\.bias \(3,\) instead of \(64,\)"),
        (_edit(add={"norm.bias": torch.ones(64, dtype=torch.int64)}), r"norm\.bias \(64,\) torch\.int64"),
        (_edit(add={"norm.bias": torch.full((64,), torch.nan)}), r"NaN or infinity in norm\.bias"),
        (lambda s: timm_model("vit_tiny_patch16_224", "vit").state_dict(), r"ViT of tiny size \(width 192, 12 blocks"),
        (lambda s: timm_model("resnet18", "timm").state_dict(), "ResNet"),
        (lambda s: vz.create_backbone("swin_tiny_patch4_window7_224").state_dict(), "Swin of tiny size"),
        (lambda s: PAIRS["torchvision_swin"].peer().state_dict(), r"torchvision's SwinTransformer.*\(swin\)"),
        (lambda s: {"a": torch.ones(2)}, "something unknown, with keys such as a"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(edit: Callable[..., Any], message: str) -> None:
    model = perturb(nano())
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(model, edit(model.state_dict()))
    assert len(str(caught.value)) < 4000
    assert unchanged(model, before)


def test_position_table_is_resampled_and_reported() -> None:
    report = load_weights(nano(image_size=(48, 32)), perturb(nano()).state_dict())
    assert report.share == 1
    assert "pos_embed resampled from 8x8 to 12x8" in str(report)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
@pytest.mark.parametrize("policy", ["repeat", "mean"])
def test_channel_policies(channels: int, policy: str) -> None:
    source = perturb(nano())
    model = nano(weights=source.state_dict(), in_chans=channels, in_chans_policy=policy)
    weight, stored = model.patch_embed.proj.weight, source.patch_embed.proj.weight
    if channels in (1, 6) or policy == "mean":  # a grey image gives what it gave
        torch.testing.assert_close(weight.sum(1), stored.sum(1))
    if policy == "repeat":
        from timm.models import adapt_input_conv

        torch.testing.assert_close(weight, adapt_input_conv(channels, stored))


def test_channels_need_a_policy() -> None:
    model = nano(in_chans=4)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"trained on 3 channels and vit_nano_patch4_32 takes 4.*repeat.*mean.*random"):
        load_weights(model, nano().state_dict())
    with pytest.raises(ValueError, match="in_chans_policy='tile' is unknown; choose one of repeat, mean, random"):
        load_weights(model, nano().state_dict(), in_chans_policy="tile")
    assert unchanged(model, before)
    report = load_weights(model, perturb(nano()).state_dict(), in_chans_policy="random")
    assert torch.equal(model.patch_embed.proj.weight, before["patch_embed.proj.weight"])
    assert report.reset == ("patch_embed.proj.weight",)
    assert "by in_chans_policy='random'" in str(report)


@pytest.mark.parametrize("part", ["encoder.", "visual.trunk.", "image_encoder.", "backbone."])
def test_a_backbone_is_taken_out_of_a_larger_model(part: str) -> None:
    source, model = perturb(nano()), nano()
    state = {part + k: v for k, v in source.state_dict().items()} | {"decoder.norm.weight": torch.ones(3)}
    report = load_weights(model, state)
    assert report.ignored == {"other parts of the checkpoint": ("decoder.norm.weight",)}
    assert unchanged(model, source.state_dict())


def test_official_mae_with_its_decoder_loads_into_a_classifier_of_averaged_patches() -> None:
    source = perturb(timm_model("vit_tiny_patch16_224", "vit", num_classes=0, **VIT))
    state = {**source.state_dict(), "mask_token": torch.ones(1), "decoder_embed.weight": torch.ones(2, 2)}
    model = timm_model("vit_tiny_patch16_224", "vit", num_classes=5, global_pool="avg", fc_norm=True, **VIT)
    with pytest.warns(UserWarning, match="head"):
        report = load_weights(model, {"model": state})
    assert report.layout == "mae"
    assert report.ignored["decoder of pretraining"] == ("decoder_embed.weight",)
    assert torch.equal(model.fc_norm.weight, source.norm.weight)
    assert any("norm.* was used as fc_norm.*" in n for n in report.notes)


def test_siglip_without_its_pooling() -> None:
    source = perturb(timm_model("vit_base_patch16_siglip_224", "vit", num_classes=0, **VIT))
    model = timm_model("vit_base_patch16_siglip_gap_224", "vit", num_classes=0, **VIT)
    report = load_weights(model, source.state_dict())
    assert report.share == 1
    assert len(report.ignored["attention pooling, which this model does not use"]) == 13
    assert torch.equal(model.forward_features(images()), source.forward_features(images()))


def test_pretraining_model_of_transformers_gives_its_encoder() -> None:
    source, model = perturb(PAIRS["vit_mae"].peer()), PAIRS["vit_mae"].ours()
    state = {f"vit.{k}": v for k, v in source.state_dict().items()} | {"decoder.mask_token": torch.ones(2)}
    report = load_weights(model, state)
    assert report.ignored == {"decoder of pretraining": ("decoder.mask_token",)}
    assert torch.equal(model.norm.weight, source.layernorm.weight)


def test_adapters_are_pure() -> None:
    for name in ("vit", "swin", "beit", "dinov2_registers", "torchvision_swin_v2"):
        pair = PAIRS[name]
        foreign, ours = pair.peer().state_dict(), pair.ours().state_dict()
        layout = next(x for x in LAYOUTS.values() if x.matches(foreign))
        for state in (foreign, ours):
            keys, values = list(state), [v.clone() for v in state.values()]
            result = layout.to_timm(state) if layout.matches(state) else layout.from_timm(state, Facts(window_size=4))
            assert result is not state
            assert list(state) == keys
            assert all(torch.equal(a, b) for a, b in zip(state.values(), values, strict=True))


def test_a_model_without_memory_is_refused() -> None:
    with torch.device("meta"):
        model = nano()
    with pytest.raises(ValueError, match=r"meta device.*to_empty"):
        load_weights(model, nano().state_dict())


def test_tensors_keep_the_models_dtype_and_identity() -> None:
    source, model = perturb(nano()), nano().half()
    parameter = model.norm.weight
    load_weights(model, source.state_dict())
    assert model.norm.weight is parameter
    assert torch.equal(model.norm.weight, source.norm.weight.half())


def test_long_lists_are_grouped() -> None:
    state = vz.create_backbone("vit_tiny_patch16_224").state_dict()
    model = vz.create_backbone("deit3_small_patch16_224")
    with pytest.raises(ValueError, match=r"blocks\.\*\.ls1\.gamma \(12\)") as caught:
        load_weights(model, state)
    assert len(str(caught.value).splitlines()) == 3


def test_plain_load_state_dict_of_a_foreign_layout_is_strict_and_works() -> None:
    pair = PAIRS["vit"]
    peer, ours = perturb(pair.peer()), pair.ours()
    install_load_hook(ours)
    install_load_hook(ours)  # once more does nothing
    ours.load_state_dict(peer.state_dict())
    torch.testing.assert_close(pair.run_ours(ours, images()), pair.run_peer(peer, images()))
    state = peer.state_dict()
    del state["vit.layernorm.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.weight"):
        ours.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*something"):
        ours.load_state_dict(peer.state_dict() | {"something": torch.ones(1)})
    ours.load_state_dict(dict(ours.state_dict()))  # and its own keys as ever


def test_the_hook_minds_its_prefix_and_travels_with_copies() -> None:
    pair = PAIRS["swin"]
    peer, ours = perturb(pair.peer()), pair.ours()
    install_load_hook(ours)
    whole = nn.ModuleDict({"trunk": copy.deepcopy(ours), "other": nn.Linear(2, 2)})
    foreign = {f"trunk.{k}": v for k, v in peer.state_dict().items()}
    foreign |= {f"other.{k}": v for k, v in whole["other"].state_dict().items()}
    whole.load_state_dict(foreign)
    torch.testing.assert_close(whole["trunk"](images()), pair.run_peer(peer, images()))
    again = pickle.loads(pickle.dumps(classifier()))
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict(peer.state_dict())


def test_a_dropped_decoder_is_no_business_of_plain_load_state_dict() -> None:
    source = perturb(nano())
    model = classifier()
    model.reset_classifier(0)
    state = {**source.state_dict(), "mask_token": torch.ones(1), "decoder_embed.weight": torch.ones(2, 2)}
    model.load_state_dict(state)
    assert unchanged(model, source.state_dict())


@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        (NANO, ("torchvision", "transformers", "transformers5", "vit_jax", "mae", "dino", "deit")),
        ("swin_nano_patch2_window4_32", ("swin", "torchvision", "transformers", "transformers5")),
        ("swinv2_nano_patch2_window4_32", ("swin", "torchvision", "transformers", "transformers5")),
    ],
)
def test_native_models_go_out_and_back(tmp_path: Path, name: str, layouts: tuple[str, ...]) -> None:
    source, model = perturb(vz.create_backbone(name)), vz.create_backbone(name)
    for layout in layouts:
        path = export_weights(source, tmp_path / f"{layout}.safetensors", layout=layout)
        load_weights(model, path)
        assert unchanged(model, source.state_dict()), layout
        nn.init.zeros_(model.norm.weight)
        model.load_state_dict(safetensors.torch.load_file(path))  # the registry installs the hook
        assert unchanged(model, source.state_dict()), layout
        nn.init.zeros_(model.norm.weight)


def test_layouts_that_cannot_hold_a_model_say_so(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="unknown layout 'torchvison'; did you mean torchvision"):
        export_weights(nano(), path, layout="torchvison")
    with pytest.raises(ValueError, match="not for models of the family 'vit'; these are: timm, vit_jax"):
        export_weights(nano(), path, layout="torchvision_swin")
    with pytest.raises(ValueError, match=r"torchvision_vit.*no place for blocks\.0\.ls1\.gamma.* and 20 more"):
        export_weights(vz.create_backbone("deit3_small_patch16_224"), path, layout="torchvision")
    with pytest.raises(ValueError, match=r"written as \.safetensors or \.npz, not '\.pth'"):
        export_weights(nano(), tmp_path / "a.pth")
    assert not path.exists()


def test_exported_file_names_its_layout(tmp_path: Path) -> None:
    _, metadata = read_state_dict(export_weights(nano(), tmp_path / "a.safetensors", layout="torchvision"))
    assert metadata["layout"] == "torchvision"


def test_positions_without_a_class_entry_get_one_of_zeros(tmp_path: Path) -> None:
    source = perturb(timm_model("vit_tiny_patch16_224", "vit", num_classes=5, no_embed_class=True, **VIT))
    path = export_weights(source, tmp_path / "a.safetensors", layout="torchvision_vit")
    peer = PAIRS["torchvision_vit"].peer().eval()
    peer.load_state_dict(safetensors.torch.load_file(path))
    torch.testing.assert_close(peer(images()), source(images()), rtol=1e-5, atol=1e-5)


def test_clip_tower_of_openai_loads() -> None:
    source = perturb(timm_model("vit_base_patch16_clip_224", "vit", num_classes=0, **VIT))
    state = {
        "logit_scale": torch.ones(()),
        "transformer.resblocks.0.ln_1.weight": torch.ones(2),
        "visual.proj": torch.ones(2),
    }
    for key, value in source.state_dict().items():
        for ours, theirs in (
            ("patch_embed.proj", "conv1"),
            ("norm_pre", "ln_pre"),
            ("blocks.", "transformer.resblocks."),
            ("norm1", "ln_1"),
            ("norm2", "ln_2"),
            ("qkv.", "in_proj_"),
            ("attn.proj", "attn.out_proj"),
            ("fc1", "c_fc"),
            ("fc2", "c_proj"),
            ("cls_token", "class_embedding"),
            ("pos_embed", "positional_embedding"),
        ):
            key = key.replace(ours, theirs)
        key = "ln_post" + key.removeprefix("norm") if key.startswith("norm.") else key
        state[f"visual.{key}"] = value.squeeze()
    model = timm_model("vit_base_patch16_clip_224", "vit", num_classes=0, **VIT)
    report = load_weights(model, state)
    assert report.layout == "clip_tower"
    assert torch.equal(model(images()), source(images()))
    state["input_resolution"] = torch.tensor(224)  # one of the sizes that OpenAI alone stores
    config = ViTConfig(**{k: v for k, v in VIT.items() if k != "img_size"}, pre_norm=True)
    preprocess = Preprocess(image_size=(VIT["img_size"], VIT["img_size"]))
    with pytest.warns(UserWarning, match=r"trained with QuickGELU.*_clip_quickgelu_ compute theirs"):
        load_weights(VisionTransformer(config, preprocess), state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(VisionTransformer(replace(config, act="quick_gelu"), preprocess), state)


def test_report_is_one_readable_paragraph() -> None:
    report = LoadReport(
        source="a.pth",
        model="vit",
        layout="mae",
        loaded=9,
        total=10,
        resampled=("pos_embed resampled from 8x8 to 4x4 tokens",),
        reset=("head.weight",),
        ignored={"decoder of pretraining": tuple(f"decoder_blocks.{i}" for i in range(9))},
        notes=("a note",),
    )
    assert str(report) == (
        "vit loaded 9 of 10 tensors (90%) from a.pth in the layout mae. "
        "Resampled: pos_embed resampled from 8x8 to 4x4 tokens. "
        "Not loaded, and left as the model had them: head.weight. "
        "Ignored decoder of pretraining: decoder_blocks.0, decoder_blocks.1 and 7 more. a note."
    )
