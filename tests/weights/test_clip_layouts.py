"""CLIP weights in and out, and what is asked of weights that do not say enough."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from transformers import CLIPConfig, SiglipConfig

import visionzoo as vz
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.clip import identify
from visionzoo.models.clip.config import CLIP_MODELS, STATISTICS
from visionzoo.weights.adapters import LAYOUTS
from visionzoo.weights.reading import read_state_dict

sys.path.append(str(Path(__file__).parents[1] / "models"))
from clip_twins import as_open_clip, open_clip_twin, shallow

QUICK, PLAIN = "ViT-B-32-quickgelu", "ViT-B-32"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def quick():
    return shallow(QUICK, 1)


@pytest.fixture(scope="module")
def theirs(quick):
    return {k: v.contiguous() for k, v in as_open_clip(quick).items()}


@pytest.mark.long
@pytest.mark.parametrize("name", [QUICK, "RN50", "ViT-B-16-SigLIP"])
def test_exported_weights_load_in_open_clip_and_come_back(name, tmp_path):
    model = shallow(name, 1)
    path = vz.export_weights(model, tmp_path / "w.safetensors", layout="open_clip")
    other = open_clip_twin(name, 1)
    other.load_state_dict(read_state_dict(path)[0], strict=True)
    again = shallow(name, 1)
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    report = vz.load_weights(again, path)  # its header says how it was trained
    assert report.share == 1.0
    assert same(again.state_dict(), model.state_dict())
    again.load_state_dict(other.state_dict(), strict=True)  # without load_weights
    assert same(again.state_dict(), model.state_dict())


VISION = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 1}
TEXT = {"context_length": 12, "vocab_size": 120, "width": 32, "heads": 2, "layers": 1}


@pytest.mark.parametrize(
    ("kind", "vision", "layout"),
    [
        (CLIP, VISION, "open_clip_vit"),
        (CustomTextCLIP, VISION, "open_clip_custom_vit"),
        (CLIP, {"timm_model_name": "resnet10t", "image_size": 32}, "open_clip_timm"),
    ],
)
def test_open_clips_other_classes(kind, vision, layout):
    """Its two classes and its image towers give five layouts; all are ours when they are read."""
    other = kind(16, vision, TEXT).state_dict()
    assert [n for n, x in LAYOUTS.items() if x.family == "clip" and x.matches(other)] == [layout]
    ours = LAYOUTS[layout].to_timm(other)
    assert {"visual.head.proj.weight", "text.text_projection", "text.ln_final.weight", "logit_scale"} <= ours.keys()
    assert all(k.startswith(("visual.trunk.", "visual.head.", "text.", "logit_scale")) for k in ours)
    back = LAYOUTS[layout].from_timm(ours)
    assert same({k: v for k, v in other.items() if k != "attn_mask"}, back)


def test_openais_own_files_say_what_they_are(quick, theirs):
    """They are float16, with sizes stored as tensors."""
    state = {k: v.half() for k, v in theirs.items()}
    state |= {
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    model = shallow(QUICK, 1)
    report = vz.load_weights(model, state)
    assert report.layout == "open_clip_vit"
    assert len(report.ignored["sizes that OpenAI stores as tensors"]) == 3
    torch.testing.assert_close(model.text.text_projection, quick.text.text_projection, rtol=1e-2, atol=1e-3)
    before = shallow(PLAIN, 1)
    kept = {k: v.clone() for k, v in before.state_dict().items()}
    with pytest.raises(ValueError, match=r"trained with quick_gelu \(they are OpenAI's\).*activation='quick_gelu'"):
        vz.load_weights(before, state)
    assert same(before.state_dict(), kept)


def test_a_bare_state_dict_is_asked_how_it_was_trained(theirs):
    model = shallow(PLAIN, 1)
    with pytest.raises(
        ValueError, match=r"do not say with which activation.*nor how their images were normalised"
    ) as e:
        vz.load_weights(model, theirs)
    assert "open_clip_config.json" in str(e.value)
    model.stated = frozenset({"activation"})
    with pytest.raises(ValueError, match="do not say how their images were normalised"):
        vz.load_weights(model, theirs)
    model.stated = frozenset({"activation", "preprocess"})
    assert vz.load_weights(model, theirs).share == 1.0


def put(folder, state, name="open_clip_model.safetensors", **configs):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / name)
    for file, value in configs.items():
        (folder / f"{file}.json").write_text(json.dumps(value))
    return folder


def test_open_clips_configuration_beside_the_weights(theirs, tmp_path):
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    config = {"model_cfg": open_clip.get_model_config(QUICK), "preprocess_cfg": statistics}
    folder = put(tmp_path / "hub", theirs, open_clip_config=config)
    # timm keeps the image tower beside it, under the name that other models prefer
    save_file({"blocks.0.norm1.weight": torch.ones(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224"}))
    model = shallow(QUICK, 1)
    vz.load_weights(model, folder)
    assert (model.preprocess.mean, model.preprocess.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (model.preprocess.resize_mode, model.preprocess.image_size) == ("squash", (224, 224))
    with pytest.raises(
        ValueError, match=r"trained with quick_gelu \(.*open_clip_config.json\), this model computes gelu"
    ):
        vz.load_weights(shallow(PLAIN, 1), folder)
    config["model_cfg"]["quick_gelu"] = False
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"trained with gelu .*this model computes quick_gelu.*without -quickgelu"):
        vz.load_weights(model, folder)


def test_transformers_configuration_beside_the_weights(quick, tmp_path):
    state = {k: v.contiguous() for k, v in LAYOUTS["transformers_clip"].from_timm(quick.state_dict()).items()}
    config = CLIPConfig().to_dict()
    folder = put(tmp_path / "hf", state, "model.safetensors", config=config)
    model = shallow(QUICK, 1)
    with pytest.raises(ValueError, match="do not say how their images were normalised"):
        vz.load_weights(model, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.3] * 3}))
    assert vz.load_weights(model, folder).layout == "transformers_clip"
    assert model.preprocess.mean == (0.4,) * 3
    config["text_config"]["hidden_act"] = config["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trained with gelu "):
        vz.load_weights(model, folder)
    config["text_config"]["hidden_act"] = "swish"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="both towers must have the same"):
        vz.load_weights(model, folder)


def test_our_own_files_say_how_they_were_trained(quick, tmp_path):
    path = vz.export_weights(quick, tmp_path / "own.safetensors")
    assert vz.load_weights(shallow(QUICK, 1), path).layout == "timm"
    with pytest.raises(ValueError, match=r"trained with quick_gelu \(its header\)"):
        vz.load_weights(shallow(PLAIN, 1), path)


@pytest.mark.long
def test_what_is_stated_need_not_be_asked():
    for name in CLIP_MODELS:
        said = set()
        if name.endswith("quickgelu"):
            said.add("activation")
        if "SigLIP" in name:
            said.add("preprocess")
        with torch.device("meta"):
            assert vz.create_clip(name).stated == said
            assert vz.create_clip(name, activation="gelu", preprocess="imagenet").stated == {"activation", "preprocess"}


def test_statistics_by_name():
    with torch.device("meta"):
        model = vz.create_clip("ViT-L-14", preprocess="inception")
        assert (model.preprocess.mean, model.preprocess.std) == STATISTICS["inception"]
        with pytest.raises(ValueError, match="preprocess='laion' must be"):
            vz.create_clip("ViT-L-14", preprocess="laion")


# Which model some weights are.


@pytest.mark.parametrize("name", CLIP_MODELS)
def test_open_clips_configurations_are_told_apart(name):
    assert identify._open_clip(open_clip.get_model_config(name)) == {"name": name}


@pytest.mark.parametrize("name", ["ViT-B-32-plus-256", "ViT-bigG-14", "RN101"])
def test_those_without_a_name_here(name):
    assert identify._open_clip(open_clip.get_model_config(name)) is None


def test_transformers_configurations():
    assert identify._transformers(CLIPConfig().to_dict(), "x") == {"name": QUICK, "activation": "quick_gelu"}
    # what an older version writes: nothing that is a default
    assert identify._transformers({"model_type": "clip"}, "x") == {"name": QUICK, "activation": "quick_gelu"}
    found = identify._transformers(SiglipConfig().to_dict(), "x")
    assert found == {"name": "ViT-B-16-SigLIP", "activation": "gelu_tanh"}
    with torch.device("meta"):
        model = vz.create_clip(**found)
    assert model.visual.trunk.config.act == model.activation == "gelu_tanh"


def test_a_folder_of_ours_is_a_model(tmp_path):
    model = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", loss="sigmoid", in_chans=1, image_size=16)
    save_bundle(model, ModelConfig(task="clip", architecture=model.architecture, preprocess=model.preprocess), tmp_path)
    again = vz.create_clip(weights=tmp_path)
    assert same(again.state_dict(), model.state_dict())
    assert (again.architecture, again.preprocess) == (model.architecture, model.preprocess)


def test_a_folder_that_says_nothing(theirs, tmp_path):
    with pytest.raises(ValueError, match=r"nothing beside .* says which CLIP it is; give its name"):
        vz.create_clip(weights=put(tmp_path / "bare", theirs))
    (tmp_path / "bare" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": open_clip.get_model_config("ViT-bigG-14"), "preprocess_cfg": {}})
    )
    with pytest.raises(ValueError, match="no name here; known are ViT-B-32"):
        vz.create_clip(weights=tmp_path / "bare")


# Parts of a CLIP, and parts for one.


def test_the_image_tower_serves_a_backbone_and_takes_one(tmp_path):
    clip = vz.create_clip(backbone="vit_nano_patch4_32", text="nano")
    path = vz.export_weights(clip, tmp_path / "clip.safetensors")
    backbone = vz.create_backbone("vit_nano_patch4_32", weights=path)
    assert same(backbone.state_dict(), clip.visual.trunk.state_dict())
    mae = vz.create_mae("vit_nano_patch4_32", decoder_dim=32, decoder_depth=1, decoder_heads=2)
    vz.export_weights(mae, tmp_path / "mae.safetensors")
    model = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", image_weights=tmp_path / "mae.safetensors")
    assert same(model.visual.trunk.state_dict(), mae.encoder.state_dict())


def test_another_size_resamples_the_positions(tmp_path):
    clip = vz.create_clip(backbone="vit_nano_patch4_32", text="nano")
    path = vz.export_weights(clip, tmp_path / "clip.safetensors")
    model = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", image_size=48)
    assert "resampled from 8x8 to 12x12" in vz.load_weights(model, path).resampled[0]


def test_what_does_not_fit_changes_nothing(theirs):
    model = shallow("ViT-B-16-quickgelu", 1)
    model.stated = frozenset({"activation", "preprocess"})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight \(768, 3, 32, 32\) instead of"):
        vz.load_weights(model, theirs)
    assert same(model.state_dict(), before)
