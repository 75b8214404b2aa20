"""The key of everything that is kept of a model's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import visionzoo as vz
from visionzoo.models.clip.image import set_activation
from visionzoo.weights.fingerprint import model_fingerprint


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return vz.create_backbone("vit_nano_patch4_32", **options).eval()


def set_eps(model: nn.Module) -> None:
    model.blocks[0].norm1.eps = 1e-3  # type: ignore[index, union-attr]


def nudge(model: nn.Module) -> None:
    with torch.no_grad():
        model.blocks[-1].mlp.fc2.bias[3] += 1e-6  # type: ignore[index, union-attr, operator]


def pool_patches(model: Any) -> None:
    model.reset_classifier(0, "avg")


CHANGES: dict[str, Callable[[Any], object]] = {
    "activation": lambda m: set_activation(m, "quick_gelu"),
    "norm eps": set_eps,
    "one weight": nudge,
    "pooling": pool_patches,
    "type": lambda m: m.to(torch.bfloat16),
    "a hook": lambda m: m.blocks[0].register_forward_hook(lambda *_: None),
    "an attribute that is a path": lambda m: setattr(m, "table", Path("a")),
    "image size": lambda m: setattr(m, "image_size", (64, 64)),
    "class": lambda m: setattr(m.blocks[0], "__class__", type("Other", (type(m.blocks[0]),), {})),
    "a wrapped layer": lambda m: setattr(m.blocks[0].mlp, "fc1", nn.Sequential(m.blocks[0].mlp.fc1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_answer_changes_the_key(change: str) -> None:
    model = vit()
    before = model_fingerprint(model, preprocess=model.preprocess)
    CHANGES[change](model)
    assert model_fingerprint(model, preprocess=model.preprocess) != before


def test_attributes_are_told_apart_by_their_values() -> None:
    model, keys = vit(), set()
    for value in (b"a", b"b", Path("a"), Path("b"), "a", ["a"], {"a"}, 1, 1.0, torch.float32, nn.GELU, None):
        model.told = value
        keys.add(model_fingerprint(model))
    assert len(keys) == 12


def test_what_stands_around_the_model_changes_the_key_as_well() -> None:
    model = vit()
    spec = model.preprocess
    keys = [model_fingerprint(model, preprocess=spec)]
    keys.append(model_fingerprint(model, preprocess=replace(spec, interpolation="bilinear")))
    keys.append(model_fingerprint(model, preprocess=spec, precision="bf16-mixed"))
    keys.append(model_fingerprint(model, preprocess=spec, context=("maps", (8, 8))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        keys.append(model_fingerprint(model, preprocess=spec))
    assert len(set(keys)) == len(keys)


def test_what_matters_only_in_training_does_not() -> None:
    model = vit()
    key = model_fingerprint(model, preprocess=model.preprocess)
    assert len(key) == 32
    assert key == model_fingerprint(vit(), preprocess=model.preprocess)
    model.train()
    model.set_grad_checkpointing()
    model.requires_grad_(False)
    model.name = "another"
    model.said_preprocess = {"mean": model.preprocess.mean}
    assert key == model_fingerprint(model, preprocess=model.preprocess)
    assert key == model_fingerprint(vit(drop_path=0.3), preprocess=model.preprocess)


@pytest.mark.long
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_it_holds_from_one_copy_to_the_next(name: str) -> None:
    keys = []
    for _ in range(2):
        torch.manual_seed(0)
        keys.append(model_fingerprint(vz.create_backbone(name, image_size=64)))
    assert keys[0] == keys[1]
    assert " at 0x" not in keys[0]


@pytest.mark.long
def test_the_same_weights_under_two_names_have_two_keys() -> None:
    plain, quick = (vz.create_backbone(n, image_size=32) for n in (
        "vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224",
    ))  # fmt: skip
    quick.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert (plain.eval()(x).pooled - quick.eval()(x).pooled).abs().max() > 1e-3
    assert model_fingerprint(plain, preprocess=plain.preprocess) != model_fingerprint(
        quick, preprocess=plain.preprocess
    )
