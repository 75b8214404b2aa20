"""Whose preprocessing holds: what the caller says, then what the weights say, then the default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import visionzoo as vz
from visionzoo.models.bundle import ModelConfig, load_bundle, save_bundle
from visionzoo.models.mae import create_mae
from visionzoo.models.simmim import create_simmim
from visionzoo.pool import shared_backbone
from visionzoo.tasks.clip import ClipTask
from visionzoo.types import Preprocess
from visionzoo.weights.preprocessing import STATISTICS, decide_preprocess, stored_preprocess

NANO = "vit_nano_patch4_32"
MEAN = (0.1, 0.2, 0.3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A classifier that wants its images in a way of its own."""
    model = vz.create_classifier(NANO, 3)
    spec = replace(model.preprocess, mean=MEAN, interpolation="bilinear")
    save_bundle(model, ModelConfig(task="classify", architecture=model.architecture, preprocess=spec), tmp_path / "run")
    return tmp_path / "run"


def clip(**options: Any) -> Any:
    return vz.create_clip(backbone=NANO, text="nano", **options)


def saved(model: Any, folder: Path) -> Path:
    task = "clip" if hasattr(model, "logit_scale") else "mae"
    save_bundle(model, ModelConfig(task=task, architecture=model.architecture, preprocess=model.preprocess), folder)
    return folder


def test_the_rule() -> None:
    default = Preprocess(image_size=(32, 48), interpolation="bilinear")
    stored = Preprocess(image_size=(224, 224), mean=MEAN, crop_pct=0.9)
    said = {"mean": MEAN}
    assert decide_preprocess(default) == default
    assert decide_preprocess(default, said=said) == replace(default, mean=MEAN)
    assert decide_preprocess(default, stored=stored) == replace(stored, image_size=(32, 48))
    assert decide_preprocess(default, said=said, stored=stored) == replace(stored, image_size=(32, 48))
    with pytest.raises(ValueError, match=r"weights from w contradicts preprocess=: crop_pct is 0.9, and 1.0 was asked"):
        decide_preprocess(default, said={**said, "crop_pct": 1.0}, stored=stored, source="w")


def is_the_runs(spec: Preprocess) -> bool:
    return (spec.mean, spec.interpolation) == (MEAN, "bilinear")


def test_every_model_follows_its_weights(run: Path) -> None:
    assert is_the_runs(vz.create_backbone(NANO, weights=run).preprocess)
    assert is_the_runs(vz.create_backbone(NANO, weights=run).info.preprocess)
    assert is_the_runs(vz.create_classifier(NANO, 3, weights=run).preprocess)
    assert is_the_runs(clip(image_weights=run).preprocess)
    sam = vz.create_sam(NANO, backbone_weights=run, embedding_stride=4, decoder_dim=16)
    assert (sam.preprocess.mean, sam.preprocess.resize_mode) == (MEAN, "longest")
    assert vz.backbone_info(NANO).preprocess.mean != MEAN


def test_a_pooled_copy_and_what_is_trained_of_it_follow_the_weights(run: Path) -> None:
    with shared_backbone(NANO, weights=run) as shared:
        copy = shared.copy_for_training()
        assert is_the_runs(shared.preprocess)
        assert is_the_runs(shared.info.preprocess)
        assert copy.preprocess == shared.preprocess


@pytest.mark.parametrize("create", [create_mae, create_simmim])
def test_a_masked_model_and_its_encoder_have_one_preprocessing(create: Any, run: Path) -> None:
    small: dict[str, Any] = {"mask_patch_size": 8}
    if create is create_mae:
        small = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    model = create(NANO, **small)
    vz.load_weights(model.encoder, run)
    assert is_the_runs(model.preprocess)
    model.preprocess = replace(model.preprocess, mean=(0.5,) * 3)
    assert model.encoder.preprocess.mean == (0.5,) * 3


def test_a_sam_follows_its_backbone(run: Path) -> None:
    sam = vz.create_sam(NANO, embedding_stride=4, decoder_dim=16)
    vz.load_weights(sam.backbone, run)
    spec = sam.preprocess
    assert (spec.mean, spec.resize_mode, spec.pad_value) == (MEAN, "longest", (26, 51, 76))
    assert torch.allclose(sam.pixel_mean.flatten(), 255 * torch.tensor(MEAN))
    own = replace(spec, interpolation="lanczos", pad_value=0)
    sam.preprocess = own
    assert sam.preprocess == own


def test_openais_weights_say_whose_they_are() -> None:
    """A state dict has nothing beside it, but OpenAI's have marks in their keys."""
    model = vz.create_backbone(NANO)
    state = {**model.state_dict(), "input_resolution": torch.tensor(224)}
    assert stored_preprocess("x", None, model.preprocess, keys=state) == replace(
        model.preprocess, mean=STATISTICS["openai"][0], std=STATISTICS["openai"][1]
    )
    assert stored_preprocess("x", None, model.preprocess, keys=model.state_dict()) is None


def test_a_clip_is_refused_weights_that_contradict_what_was_said(tmp_path: Path) -> None:
    folder = saved(clip(preprocess="openai"), tmp_path)
    assert vz.create_clip(weights=folder).preprocess.mean == STATISTICS["openai"][0]
    assert vz.create_clip(weights=folder, preprocess="openai").preprocess.mean == STATISTICS["openai"][0]
    with pytest.raises(ValueError, match=r"contradicts preprocess=: mean is \[0.48.*and \[0.5, 0.5, 0.5\] was asked"):
        vz.create_clip(weights=folder, preprocess="inception")
    spec = replace(clip(preprocess="openai").preprocess, resize_mode="squash")
    with pytest.raises(ValueError, match="resize_mode is shortest, and squash was asked for"):
        vz.create_clip(weights=folder, preprocess=spec)
    model = clip(preprocess="inception")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="Leave preprocess out to follow the weights"):
        vz.load_weights(model, folder)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert load_bundle(folder)[0].preprocess.mean == STATISTICS["openai"][0]  # type: ignore[union-attr]


def test_so_are_those_of_its_image_tower(run: Path) -> None:
    with pytest.raises(ValueError, match="contradicts preprocess=: mean is"):
        clip(image_weights=run, preprocess="openai")
    spec = replace(vz.create_backbone(NANO, weights=run).preprocess, image_size=(64, 64))
    assert is_the_runs(clip(image_weights=run, preprocess=spec).preprocess)
    with pytest.raises(ValueError, match="contradicts preprocess=: mean is"):
        ClipTask(backbone=NANO, text="nano", image_weights=str(run), image_statistics="openai")


def test_statistics_that_a_file_has_rounded_are_no_contradiction(tmp_path: Path) -> None:
    model = clip(preprocess="openai")
    model.preprocess = replace(model.preprocess, mean=(0.4815, 0.4578, 0.4082), std=(0.2686, 0.2613, 0.2758))
    assert vz.create_clip(weights=saved(model, tmp_path), preprocess="openai").preprocess.mean[0] == 0.4815
