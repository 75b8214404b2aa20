"""Five networks for 32 pixels with about ten million multiply-adds each, so that families differ and cost does not.

Importing this registers them. Each keeps the parts that make its family, at widths that fit: residual blocks
(arXiv 1512.03385), ConvNeXt's blocks (2201.03545), a plain ViT (2010.11929), Swin's windows (2103.14030), and as a
hybrid the convolutional tokenizer of compact transformers in front of a ViT (2104.05704, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from visionzoo.backbones import BackboneSpec, list_backbones, register_backbone
from visionzoo.backbones.swin import SwinConfig, SwinTransformer
from visionzoo.backbones.vit import VisionTransformer, ViTConfig
from visionzoo.types import Preprocess

__all__ = ["cct_pilot", "convnext_pilot", "resnet_pilot"]  # timm registers what is named here

PIXELS = 32


def _cfg(classifier: str, first_conv: str) -> dict[str, Any]:
    return {"input_size": (3, PIXELS, PIXELS), "crop_pct": 1.0, "classifier": classifier, "first_conv": first_conv}


default_cfgs = generate_default_cfgs(
    {
        "resnet_pilot.untrained": _cfg("head.fc", "stem.conv"),
        "convnext_pilot.untrained": _cfg("head.fc", "stem.0"),
        "cct_pilot.untrained": _cfg("head", "patch_embed.conv1"),
    }
)
#: What timm.create_model hands on, and a network without published weights has no use for.
_OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _own(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in _OF_TIMM}


@register_model
def resnet_pilot(pretrained: bool = False, **options: Any) -> ByobNet:  # noqa: ARG001
    """Residual blocks of two 3x3 convolutions at 16x16, 8x8 and 4x4."""
    widths = ((24, 1), (64, 2), (128, 2))
    blocks = tuple(ByoBlockCfg("basic", d=1, c=width, s=stride) for width, stride in widths)
    return ByobNet(ByoModelCfg(blocks=blocks, stem_chs=24, stem_type="3x3", stem_pool=""), **_own(options))


@register_model
def convnext_pilot(pretrained: bool = False, **options: Any) -> ConvNeXt:  # noqa: ARG001
    """ConvNeXt's blocks at 8x8, 4x4, 2x2 and 1x1: timm's first stage halves what a stem of 2x2 patches leaves."""
    return ConvNeXt(patch_size=2, depths=(2, 1, 1, 1), dims=(72, 112, 136, 136), **_own(options))


class ConvTokenizer(nn.Module):
    """Two 3x3 convolutions, each with a ReLU and a max pooling of stride 2; the parts of timm's ``PatchEmbed``."""

    dynamic_img_pad = False

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        embed_dim: int,
        output_fmt: str = "NLC",
        **_: Any,  # what only a patch embedding takes
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // 4, width // 4)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.output_fmt = output_fmt
        self.conv1 = nn.Conv2d(in_chans, embed_dim // 2, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(embed_dim // 2, embed_dim, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def feat_ratio(self) -> int:
        """Pixels of a token's edge."""
        return 4

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H/4 * W/4, D), or (B, H/4, W/4, D) where timm resamples positions."""
        x = self.pool(self.conv1(images).relu())
        x = self.pool(self.conv2(x).relu())
        return x.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else x.flatten(2).transpose(1, 2)


class CompactViT(TimmViT):
    """timm's ViT with a convolutional tokenizer and the mean of its tokens."""

    def __init__(self, img_size: int | tuple[int, int] = PIXELS, dynamic_img_pad: bool = False, **options: Any) -> None:  # noqa: ARG002
        super().__init__(img_size=img_size, embed_layer=ConvTokenizer, class_token=False, global_pool="avg", **options)
        for block in self.blocks:
            block.attn.fused_attn = False  # in bf16 a CPU's fused backward takes as long as all the rest


@register_model
def cct_pilot(pretrained: bool = False, **options: Any) -> CompactViT:  # noqa: ARG001
    """Convolutions down to 8x8 tokens, then two blocks of attention."""
    return CompactViT(embed_dim=64, depth=2, num_heads=2, mlp_ratio=2.0, **_own(options))


def _register(name: str, family: str, build: Callable[..., Any], paper: str) -> None:
    if name not in list_backbones(name):  # the module may be imported anew
        register_backbone(
            BackboneSpec(name=name, family=family, build=build, paper=paper, licence="none published", weights=None)
        )


_PREPROCESS = Preprocess(image_size=(PIXELS, PIXELS), crop_pct=1.0)
_register(
    "vit_pilot", "vit", partial(VisionTransformer, ViTConfig(patch_size=4, embed_dim=64, depth=3, num_heads=2),
    _PREPROCESS), "arXiv 2010.11929",
)  # fmt: skip
_register(
    "swin_pilot", "swin", partial(SwinTransformer, SwinConfig(embed_dim=56, depths=(2, 2), num_heads=(2, 4), window=4),
    _PREPROCESS), "arXiv 2103.14030",
)  # fmt: skip
