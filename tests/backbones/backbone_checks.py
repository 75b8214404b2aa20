"""Backbones for the contract tests: timm families, and helpers that make a comparison worth something."""

from __future__ import annotations

from functools import cache

import timm
import torch
from torch import nn

import visionzoo as vz
from visionzoo.backbones.base import Backbone

#: One small model of each timm family, at the smallest input that keeps every stage alive; None for the model's own.
TIMM_FAMILIES: dict[str, int | None] = {
    "mobilevit_xxs": 64,
    "pvt_v2_b0": 64,
    "volo_d1_224": 64,
    "mixer_s32_224": 64,
    "convnext_atto": 64,
    "test_resnet": 64,
    "cs3darknet_focus_s": 64,
    "vgg11": 32,  # slow: its pre-logits layers alone have 119 million weights
    "test_efficientnet": 64,
    "test_maxvit": None,
    "hiera_tiny_224": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64,
    "test_vit": 64,
    "swin_tiny_patch4_window7_224": 112,
    # Families whose trunk speaks another layout: lists, NCL, class tokens only, uncounted class tokens.
    "coat_tiny": 64,
    "crossvit_tiny_240": None,
    "efficientvim_m1": 64,
    "levit_128s": None,
    "pit_ti_224": 64,
    "test_mambaout": 64,
    "xcit_nano_12_p16_224": 64,
}


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter and stored buffer off its initial value: zero-initialised tables test nothing."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * 2 - 1
            tensor.add_(noise * (0.2 * tensor.abs().mean() + 0.01))
    return model


@cache
def build(name: str, image_size: int | None = None) -> Backbone:
    """A perturbed backbone in eval; shared by the tests, which must not change it."""
    torch.manual_seed(0)
    return perturb(vz.create_backbone(name, image_size=image_size)).eval()


def images(model: Backbone, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """A batch of the model's own size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.in_chans, *model.image_size, generator=generator)


@cache
def timm_twin(model: Backbone) -> nn.Module:
    """timm's own model with the same weights; shared by the tests, which must not change it."""
    options = {k: v for k, v in model._facts.options if k == "img_size"}
    twin = timm.create_model(model.name.removeprefix("timm/"), num_classes=0, **options)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def assert_close(ours: torch.Tensor, reference: torch.Tensor, tol: float = 1e-5) -> None:
    """Relative to the reference: ``tol * max(1, |reference|)``."""
    assert ours.shape == reference.shape
    if not ours.numel():  # a backbone without prefix tokens
        return
    worst = ((ours - reference).abs() / reference.abs().clamp(min=1)).max().item()
    assert worst <= tol, f"differs by {worst:.2e} relative to max(1, |reference|)"
