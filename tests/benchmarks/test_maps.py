"""Where models look: class-activation maps against written-out ones, and how far two maps agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import visionzoo as vz
from visionzoo.data.sources.shapes import ShapesSource


def classifier(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return vz.create_classifier(name, 5, **options).eval()


def weighed(maps: Tensor, slopes: Tensor) -> Tensor:
    """Equations 1 and 2 of the paper, one number after the other."""
    found = torch.zeros(maps.shape[0], *maps.shape[2:])
    for b in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            found[b] += slopes[b, k].mean() * maps[b, k]
    return found.clamp_min(0)


@pytest.mark.parametrize("name", ["timm/resnet10t", "swin_nano_patch2_window4_32"])
def test_where_a_mean_is_read_it_is_the_class_activation_map(load: Any, name: str) -> None:
    """Section 3.1 of the paper: with a mean and a linear layer behind the map it is CAM (arXiv 1512.04150), whose
    weights are those of the layer."""
    model, outputs = classifier(name, image_size=64), torch.tensor([1, 4])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = model.split(model.forward_features(images), (64, 64))[0]
    head = model.get_classifier()
    slopes = (head.weight[outputs] / maps[0, 0].numel())[:, :, None, None].expand_as(maps)
    found = load("released.maps").grad_cam(model, images, outputs)
    assert found.any()
    torch.testing.assert_close(found, weighed(maps, slopes.detach()), rtol=1e-4, atol=1e-6)


def test_where_a_class_token_is_read_it_is_of_what_the_last_attention_sees(load: Any) -> None:
    model, outputs = classifier("vit_nano_patch4_32"), torch.tensor([0, 3])
    assert model.pooled_token == 0
    for parameter in model.parameters():  # as after training: where new weights are zero nothing depends on them
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.randn(2, 3, 32, 32)
    seen: list[Tensor] = []
    last = model.blocks[-1]
    handle = last.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    model(images)
    handle.remove()
    tokens = seen[0]
    patches = last.norm1(tokens).detach().requires_grad_()
    x = tokens + last.ls1(last.attn(patches))
    x = x + last.ls2(last.mlp(last.norm2(x)))
    logits = model.forward_head(model.norm(x))
    torch.testing.assert_close(logits, model(images))
    (slopes,) = torch.autograd.grad(logits[0, 0] + logits[1, 3], patches)
    maps, slopes = (t[:, 1:].transpose(1, 2).reshape(2, -1, 8, 8).detach() for t in (patches, slopes))
    found = load("released.maps").grad_cam(model, images, outputs)
    assert found.any()
    torch.testing.assert_close(found, weighed(maps, slopes), rtol=1e-4, atol=1e-6)
    assert not last.norm1._forward_hooks


def test_a_model_without_places_says_so(load: Any) -> None:
    model = classifier("vit_nano_patch4_32")
    model.blocks = torch.nn.ModuleList([torch.nn.Identity()])
    model.forward_features = lambda images: images.new_ones(len(images), 65, 192)
    model.forward_head = lambda x: x[:, 0, :5]
    with pytest.raises(ValueError, match="answers from a class token, and its blocks are not known"):
        load("released.maps").grad_cam(model, torch.randn(1, 3, 32, 32), torch.tensor([0]))
    model.forward_features = lambda images: [images, images]
    with pytest.raises(ValueError, match="maps of several branches"):
        load("released.maps").grad_cam(model, torch.randn(1, 3, 32, 32), torch.tensor([0]))


def test_maps_agree_by_the_order_of_their_places(load: Any) -> None:
    agreement = load("released.maps").agreement
    one = np.random.default_rng(0).random((3, 4, 4))
    mean, deviation, count = agreement(one, one**3)
    assert (mean, deviation, count) == (pytest.approx(1), pytest.approx(0, abs=1e-12), 3)
    assert agreement(one, -one)[0] == pytest.approx(-1)
    flat = one.copy()
    flat[1:] = 0.5
    assert agreement(one, flat) is None  # one picture has ranks, and one is no mean


def test_a_small_input_is_asked_once_at_each_size(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, scoring = load("released.subject"), load("released.scoring")
    source = ShapesSource(4, size=32)
    answers = load("released.labels").Question(np.arange(1000), (frozenset({0}),) * 4)
    asked = subject.Subject(scoring.Released("timm/lcnet_035", "random"), source, "all", "cpu", 4, (64, 64))
    monkeypatch.setattr(subject.Subject, "question", answers)
    with pytest.warns(UserWarning, match="random weights"):
        found = load("released.robust").input_size(asked)
    assert found["x"] == [32, 64, 96]
    assert len(found["accuracy"]) == 3
