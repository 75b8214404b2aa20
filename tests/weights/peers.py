"""Small peers from transformers and torchvision, and the timm models that they are equal to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

SIZE, PATCH, WIDTH, HEADS, CLASSES = 32, 8, 24, 2, 5
VIT = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "mlp_ratio": 2.0}
SWIN = {"img_size": 32, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
HF = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_labels": CLASSES,
}


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter values of its own; zero-initialised tables test nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


def as_backbone(model: nn.Module, family: str, name: str = "a timm model") -> nn.Module:
    """Give a timm model the attributes that ``load_weights`` reads."""
    model.name, model.weights_family = name, family
    head = {"vit": ("head.", "head_dist."), "swin": ("head.",)}.get(family, ("head.", "fc.", "classifier."))
    model.head_prefixes, model.stem_key = head, model.default_cfg["first_conv"] + ".weight"
    model.adapt_state_dict = lambda sd, size=None: (dict(sd), [])
    return model


def timm_model(name: str, family: str, **options: Any) -> nn.Module:
    return as_backbone(timm.create_model(name, **options), family, name).eval()


def images(seed: int = 1, size: int = SIZE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Pair:
    """A foreign model, and what to build here so that it is the same network."""

    layout: str
    peer: Callable[[], nn.Module]
    ours: Callable[[], nn.Module]
    run_peer: Callable[[nn.Module, Tensor], Tensor]
    run_ours: Callable[[nn.Module, Tensor], Tensor] = lambda m, x: m(x)
    prepare: Callable[[nn.Module], Any] | None = None  #: after perturbing: what the peer cannot have away from zero


def _transformers() -> Any:
    return pytest.importorskip("transformers")


def _tokens(model: nn.Module, x: Tensor) -> Tensor:
    return model.forward_features(x)


def _hidden(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).last_hidden_state


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).logits


def _vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm_model(name, "vit", num_classes=CLASSES, **{**VIT, **options})


def _swin(name: str = "swin_tiny_patch4_window7_224", **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm_model(name, "swin", num_classes=CLASSES, **{**SWIN, **options})


def _hf(config: str, model: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = _transformers()
        return getattr(library, model)(getattr(library, config)(**options))

    return build


def _tv(model: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import swin_transformer, vision_transformer

        if model == "vit":
            return vision_transformer.VisionTransformer(SIZE, PATCH, 2, HEADS, WIDTH, 2 * WIDTH, num_classes=CLASSES)
        more = {}
        if model == "swin_v2":
            block, merging = swin_transformer.SwinTransformerBlockV2, swin_transformer.PatchMergingV2
            more = {"block": block, "downsample_layer": merging}
        return swin_transformer.SwinTransformer([4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, **more)

    return build


def _zero_key_bias(model: nn.Module) -> None:
    """torchvision ignores the keys' part of Swin v2's bias, and timm does not store it."""
    for key, tensor in model.state_dict().items():
        if key.endswith("qkv.bias"):
            tensor.view(3, -1)[1] = 0


_MLP = {"intermediate_size": 2 * WIDTH}
_SWIN_HF = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_SWIN_HF |= {"num_labels": CLASSES}
_DEIT = {**HF, **_MLP}
_EPS = {"layer_norm_eps": 1e-6}

PAIRS: dict[str, Pair] = {
    "vit": Pair("vit", _hf("ViTConfig", "ViTForImageClassification", **HF, **_MLP, **_EPS), _vit(), _logits),
    "vit_mae": Pair(
        "vit",
        # Without masking, in order: the encoder alone.
        _hf("ViTMAEConfig", "ViTMAEModel", **HF, **_MLP, **_EPS, mask_ratio=0.0),
        lambda: timm_model("vit_tiny_patch16_224", "vit", num_classes=0, **VIT),
        lambda m, x: m(x, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state,
        _tokens,
    ),
    "deit": Pair(
        "deit",
        _hf("DeiTConfig", "DeiTForImageClassificationWithTeacher", **_DEIT, **_EPS),
        _vit("deit_tiny_distilled_patch16_224"),
        _logits,
    ),
    "dinov2": Pair(
        "dinov2",
        _hf("Dinov2Config", "Dinov2Model", **HF, mlp_ratio=2, **_EPS),
        lambda: timm_model("vit_small_patch14_dinov2", "vit", num_classes=0, **VIT),
        _hidden,
        _tokens,
    ),
    "dinov2_giant": Pair(
        "dinov2",
        _hf("Dinov2Config", "Dinov2Model", **HF, mlp_ratio=2, use_swiglu_ffn=True, **_EPS),
        lambda: timm_model("vit_giant_patch14_dinov2", "vit", num_classes=0, **VIT | {"mlp_ratio": 64 / 24}),
        _hidden,
        _tokens,
    ),
    "dinov2_registers": Pair(
        "dinov2_registers",
        _hf("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", **HF, mlp_ratio=2, **_EPS),
        lambda: timm_model("vit_small_patch14_reg4_dinov2", "vit", num_classes=0, **VIT),
        _hidden,
        _tokens,
    ),
    "dinov3": Pair(
        "dinov3",
        _hf("DINOv3ViTConfig", "DINOv3ViTModel", **HF, **_MLP, num_register_tokens=4),
        lambda: timm_model("vit_small_patch16_dinov3_qkvb", "vit", num_classes=0, **VIT),
        _hidden,
        _tokens,
    ),
    "dinov3_gated": Pair(
        "dinov3",
        _hf(
            "DINOv3ViTConfig",
            "DINOv3ViTModel",
            **HF,
            **_MLP,
            num_register_tokens=4,
            use_gated_mlp=True,
            hidden_act="silu",
        ),
        lambda: timm_model("vit_small_plus_patch16_dinov3_qkvb", "vit", num_classes=0, **VIT),
        _hidden,
        _tokens,
    ),
    "beit": Pair(
        "beit",
        _hf(
            "BeitConfig",
            "BeitForImageClassification",
            **HF,
            **_MLP,
            use_relative_position_bias=True,
            layer_norm_eps=1e-6,
        ),
        _vit("beit_base_patch16_224"),
        _logits,
    ),
    "swin": Pair("swin", _hf("SwinConfig", "SwinForImageClassification", **_SWIN_HF), _swin(), _logits),
    "swinv2": Pair(
        "swinv2",
        _hf("Swinv2Config", "Swinv2ForImageClassification", **_SWIN_HF),
        _swin("swinv2_tiny_window8_256"),
        _logits,
    ),
    "torchvision_vit": Pair("torchvision_vit", _tv("vit"), _vit(), lambda m, x: m(x)),
    "torchvision_swin": Pair("torchvision_swin", _tv("swin"), _swin(), lambda m, x: m(x)),
    "torchvision_swin_v2": Pair(
        "torchvision_swin", _tv("swin_v2"), _swin("swinv2_tiny_window8_256"), lambda m, x: m(x), prepare=_zero_key_bias
    ),
}
