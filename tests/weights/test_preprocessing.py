import json

import pytest
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg, list_pretrained

import visionzoo as vz
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.types import Preprocess
from visionzoo.weights.preprocessing import stored_preprocess, timm_preprocess

NANO = "vit_nano_patch4_32"


@pytest.fixture
def folder(tmp_path):
    """A folder with the weights of a small ViT and no configuration."""
    save_file(vz.create_backbone(NANO).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_timms_hub_configuration_is_followed_at_the_models_own_size(folder):
    cfg = get_pretrained_cfg("vit_base_patch16_224.mae").to_dict()
    (folder / "config.json").write_text(json.dumps({"architecture": NANO, "pretrained_cfg": cfg}))
    model = vz.create_backbone(NANO)
    assert model.preprocess.mean == (0.5, 0.5, 0.5)
    report = vz.load_weights(model, folder)
    assert model.preprocess == timm_preprocess(cfg, (32, 32))
    assert model.preprocess.mean == (0.485, 0.456, 0.406)
    assert "images are prepared as these weights want" in str(report)


def test_our_own_configuration_is_followed(tmp_path):
    model = vz.create_classifier(NANO, 3)
    spec = Preprocess(image_size=(32, 32), mean=(0.1, 0.2, 0.3), resize_mode="squash")
    save_bundle(model, ModelConfig(task="classify", architecture=model.architecture, preprocess=spec), tmp_path)
    other = vz.create_backbone(NANO, weights=tmp_path, image_size=48)
    assert other.preprocess == Preprocess(image_size=(48, 48), mean=(0.1, 0.2, 0.3), resize_mode="squash")


def test_transformers_statistics_are_taken_and_the_geometry_stays(folder):
    config = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "resample": 2, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    before = vz.create_backbone(NANO).preprocess
    after = vz.create_backbone(NANO, weights=folder).preprocess
    assert (after.mean, after.std, after.interpolation) == ((0.1,) * 3, (0.2,) * 3, "bilinear")
    assert (after.value_scale, after.resize_mode, after.crop_pct) == (255.0, before.resize_mode, before.crop_pct)


def test_weights_without_a_configuration_change_nothing(folder):
    before = vz.create_backbone(NANO).preprocess
    assert vz.create_backbone(NANO, weights=folder).preprocess == before
    assert stored_preprocess("x", folder / "model.safetensors", before) is None


def test_a_damaged_configuration_is_named_and_the_model_is_unchanged(folder):
    (folder / "config.json").write_text("{")
    model = vz.create_backbone(NANO)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        vz.load_weights(model, folder)
    assert all((model.state_dict()[k] == v).all() for k, v in before.items())


def test_every_tag_of_timm_has_a_preprocessing(tmp_path):
    current = Preprocess(image_size=(224, 224))
    for name in list_pretrained("vit_base_patch16_224.*"):
        spec = stored_preprocess(f"timm:{name}", tmp_path / "none", current)
        assert spec is not None
        assert spec.mean == tuple(get_pretrained_cfg(name).mean)
