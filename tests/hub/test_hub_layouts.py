"""Folders that timm, open_clip and transformers open, and what they answer there."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import timm
import torch

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.hub.layouts import write_open_clip, write_timm
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.clip.config import CLIP_MODELS, text_from_open_clip, text_to_open_clip


def config_of(model, task: str, labels: tuple[str, ...] = ()) -> ModelConfig:
    return ModelConfig(task=task, architecture=model.architecture, preprocess=model.preprocess, labels=labels)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "pool"),
    [("vit_tiny_patch16_224", 64, "avg"), ("vit_tiny_patch16_224", 224, None), ("timm/resnet10t", 64, None)],
)
def test_timm(tmp_path: Path, name: str, size: int, pool: str | None) -> None:
    model = vz.create_classifier(name, 3, image_size=size, global_pool=pool).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    write_timm(model, config_of(model, "classify", ("cat", "dog", "cow")), tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), model(images), atol=1e-5, rtol=1e-5)
    data = timm.data.resolve_model_data_config(theirs)
    assert (data["input_size"], tuple(data["mean"])) == ((3, size, size), model.preprocess.mean)
    assert (data["interpolation"], data["crop_pct"]) == (model.preprocess.interpolation, model.preprocess.crop_pct)
    # and we read the same folder
    again = vz.create_classifier(name, 3, image_size=size, global_pool=pool, weights=tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


def test_a_network_that_timm_has_not(tmp_path: Path) -> None:
    model = vz.create_classifier("vit_nano_patch4_32", 3)
    with pytest.raises(ValueError, match="timm has no vit_nano_patch4_32"):
        write_timm(model, config_of(model, "classify"), tmp_path)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_open_clip(tmp_path: Path, loss: str) -> None:
    model = vz.create_clip(backbone="timm/test_vit", text="nano", context_length=16, loss=loss).eval()
    write_open_clip(model, config_of(model, "clip"), tmp_path)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    images, ids = torch.randn(2, 3, 160, 160), model.tokenizer(["a cat", "two dogs in the snow"])
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval().encode_image(images), model.encode_image(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs.encode_text(ids), model.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert torch.equal(theirs.logit_scale, model.logit_scale)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert torch.equal(tokenizer(["a cat"]), model.tokenizer(["a cat"]))
    assert tuple(preprocess.transforms[-1].mean) == model.preprocess.mean


def test_open_clip_opens_one_size(tmp_path: Path) -> None:
    model = vz.create_clip(backbone="timm/test_vit", text="nano", image_size=64)
    with pytest.raises(ValueError, match=r"opens test_vit at 160x160 pixels, and this one has 64x64"):
        write_open_clip(model, config_of(model, "clip"), tmp_path)


def test_every_text_tower_says_what_it_is() -> None:
    for config in CLIP_MODELS.values():
        said = {"text_cfg": text_to_open_clip(config.text), "quick_gelu": config.text.activation == "quick_gelu"}
        assert text_from_open_clip(said) == config.text


@pytest.mark.long
def test_transformers_pipeline_answers_as_the_run(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import pipeline

    model = vz.create_classifier("vit_tiny_patch16_224", 3, image_size=64)
    torch.nn.init.normal_(model.get_classifier().weight)
    save_bundle(model, config_of(model, "classify", ("cat", "dog", "cow")), tmp_path / "run")
    out = tmp_path / "out"
    words = ["push", str(tmp_path / "run"), "me/x", "--licence", "mit", "--layout", "transformers", "--out", str(out)]
    assert main(words) == 0
    picture = Image.new("RGB", (80, 70), "red")
    theirs = pipeline("image-classification", model=str(out))(picture)
    ours = vz.ImageClassifier.load(tmp_path / "run").predict([picture])[0]
    for answer, (label, probability) in zip(theirs, ours, strict=True):
        assert answer["label"] == label
        assert abs(answer["score"] - probability) < 1e-5
