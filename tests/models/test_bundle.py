import json

import pytest
import torch

import visionzoo as vz
from visionzoo.models.bundle import ModelConfig, load_bundle, save_bundle


def _model_and_config():
    model = vz.create_classifier("vit_nano_patch4_32", 3, image_size=(16, 24)).eval()
    config = ModelConfig(
        task="classify", architecture=model.architecture, preprocess=model.preprocess, labels=("a", "b", "ç")
    )
    return model, config


def test_round_trip(tmp_path):
    model, config = _model_and_config()
    save_bundle(model, config, tmp_path)
    other, read = load_bundle(tmp_path)
    assert read == config
    assert not other.training
    x = torch.randn(2, 3, 16, 24)
    assert torch.equal(other(x), model(x))
    assert other.preprocess == model.preprocess


def test_only_two_files_and_plain_json(tmp_path):
    save_bundle(*_model_and_config(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["schema_version"] == 1
    assert values["preprocess"]["image_size"] == [16, 24]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version 99"),
        ({"task": "paint"}, "task 'paint'; known tasks are classify"),
        ({"extra": 1}, "unknown keys extra"),
    ],
)
def test_foreign_configurations_are_refused(tmp_path, change, message):
    save_bundle(*_model_and_config(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load_bundle(tmp_path)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has not exported a model yet"):
        load_bundle(tmp_path)
    save_bundle(*_model_and_config(), tmp_path)
    (tmp_path / "config.json").write_text('{"task": ')
    with pytest.raises(ValueError, match="is not JSON"):
        load_bundle(tmp_path)
