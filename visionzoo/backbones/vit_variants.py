"""Every named ViT: which parts it has, and how its published weights want their images.

Names, parts and preprocessing are timm's, so that its weights load by name; a test compares them with timm.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from visionzoo.backbones.vit import VisionTransformer, ViTConfig
from visionzoo.registry import BackboneSpec, register_backbone
from visionzoo.types import Preprocess

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

#: Widths of the standard sizes: embed_dim, depth, num_heads and, where it is not 4, mlp_ratio.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {"embed_dim": 64, "depth": 4, "num_heads": 2},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
    "so400m": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362},
    "giantopt": {"embed_dim": 1536, "depth": 40, "num_heads": 16},
}

VIT_PAPER = "arXiv 2010.11929"
AUGREG = "arXiv 2106.10270"


def register_vit(
    name: str,
    config: ViTConfig,
    preprocess: Preprocess,
    *,
    paper: str,
    tag: str | None = None,
    licence: str = "apache-2.0",
    family: str = "vit",
    model_class: type[VisionTransformer] = VisionTransformer,
) -> None:
    """Register one ViT flavour; ``tag`` is timm's name for its published weights."""
    register_backbone(
        BackboneSpec(
            name=name,
            family=family,
            build=partial(model_class, config, preprocess),
            paper=paper,
            licence=licence if tag else "none published",
            weights=f"timm:{name}.{tag}" if tag else None,
        )
    )


def spec(
    size: int,
    stats: tuple[tuple[float, ...], tuple[float, ...]] = INCEPTION,
    crop: float = 0.9,
    resize: str = "shortest",
) -> Preprocess:
    """The preprocessing of published weights for a square input of ``size`` pixels."""
    return Preprocess(image_size=(size, size), mean=stats[0], std=stats[1], crop_pct=crop, resize_mode=resize)


def sized(size: str, patch_size: int, **parts: Any) -> ViTConfig:
    """A flavour at a standard size."""
    return ViTConfig(patch_size=patch_size, **{**SIZES[size], **parts})


def _plain() -> None:
    """The original ViTs (AugReg weights), and a small one for tests and laptops."""
    register_vit("vit_nano_patch4_32", sized("nano", 4), spec(32, crop=1.0), paper=VIT_PAPER)
    augreg = "augreg_in21k_ft_in1k"
    for size, patch, pixels, tag in (
        ("tiny", 16, 224, augreg),
        ("tiny", 16, 384, augreg),
        ("small", 32, 224, augreg),
        ("small", 32, 384, augreg),
        ("small", 16, 224, augreg),
        ("small", 16, 384, augreg),
        ("base", 32, 384, augreg),
        ("base", 8, 224, "augreg2_in21k_ft_in1k"),
        ("base", 32, 224, augreg),
        ("base", 16, 224, "augreg2_in21k_ft_in1k"),
        ("base", 16, 384, augreg),
        ("large", 32, 224, "orig_in21k"),
        ("large", 32, 384, "orig_in21k_ft_in1k"),
        ("large", 16, 224, augreg),
        ("large", 16, 384, augreg),
        ("large", 14, 224, None),
        ("huge", 14, 224, "orig_in21k"),
        ("giant", 14, 224, None),
    ):
        paper = AUGREG if tag and "augreg" in tag else VIT_PAPER
        if (size, pixels) == ("giant", 224):
            paper = "arXiv 2106.04560"
        name = f"vit_{size}_patch{patch}_{pixels}"
        register_vit(name, sized(size, patch), spec(pixels, crop=1.0 if pixels == 384 else 0.9), paper=paper, tag=tag)
    register_vit("vit_small_patch8_224", sized("small", 8), spec(224, IMAGENET), paper="arXiv 2104.14294", tag="dino")
    # Not in timm by name: the parts that no published plain ViT combines.
    register_vit("vit_small_patch16_qknorm_224", sized("small", 16, qk_norm=True), spec(224), paper="arXiv 2302.05442")
    register_vit(
        "vit_small_patch16_sincos_224", sized("small", 16, position="sincos"), spec(224), paper="arXiv 2205.01580"
    )


def _pooled() -> None:
    """Average pooling, with registers (arXiv 2309.16588) or without a class token."""
    gap = {"class_token": False, "pool": "avg"}
    register_vit(
        "vit_medium_patch16_gap_256",
        sized("medium", 16, **gap, pool_norm=False, qkv_bias=False, layer_scale=1e-6),
        spec(256, crop=0.95),
        paper="timm",
        tag="sw_in12k_ft_in1k",
    )
    for size, registers, scale, crop, tag in (
        ("medium", 1, 1e-5, 0.95, "sbb_in1k"),
        ("medium", 4, 1e-5, 0.95, "sbb_in12k_ft_in1k"),
        ("base", 4, None, 0.9, None),
    ):
        config = sized(size, 16, **gap, registers=registers, prefix_positions=False, layer_scale=scale)
        name = f"vit_{size}_patch16_reg{registers}_gap_256"
        register_vit(name, config, spec(256, crop=crop), paper="arXiv 2309.16588", tag=tag)


def _deit() -> None:
    """DeiT (arXiv 2012.12877), with and without distillation, and DeiT III (arXiv 2204.07118)."""
    for size, pixels in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        pre = spec(pixels, IMAGENET, 1.0 if pixels == 384 else 0.9)
        for infix, parts in (("", {}), ("_distilled", {"distill_token": True, "pool": "distill"})):
            name = f"deit_{size}{infix}_patch16_{pixels}"
            register_vit(name, sized(size, 16, **parts), pre, paper="arXiv 2012.12877", tag="fb_in1k", family="deit")
    for size, patch, pixels in (
        ("small", 16, 224),
        ("small", 16, 384),
        ("medium", 16, 224),
        ("base", 16, 224),
        ("base", 16, 384),
        ("large", 16, 224),
        ("large", 16, 384),
        ("huge", 14, 224),
    ):
        register_vit(
            f"deit3_{size}_patch{patch}_{pixels}",
            sized(size, patch, layer_scale=1e-6, prefix_positions=False),
            spec(pixels, IMAGENET, 1.0 if pixels == 384 else 0.9),
            paper="arXiv 2204.07118",
            tag="fb_in1k",
            family="deit3",
        )


def _dinov2() -> None:
    """DINOv2 (arXiv 2304.07193), plain and with registers (arXiv 2309.16588)."""
    giant = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 2.66667 * 2, "mlp": "swiglu_packed"}
    for size in ("small", "base", "large", "giant"):
        config = sized(size, 14, layer_scale=1e-5, **(giant if size == "giant" else {}))
        pre = spec(518, IMAGENET, 1.0)
        register_vit(
            f"vit_{size}_patch14_dinov2", config, pre, paper="arXiv 2304.07193", tag="lvd142m", family="dinov2"
        )
        register_vit(
            f"vit_{size}_patch14_reg4_dinov2",
            replace(config, registers=4, prefix_positions=False),
            pre,
            paper="arXiv 2309.16588",
            tag="lvd142m",
            family="dinov2",
        )


def _clip_towers() -> None:
    """Image towers of CLIP (arXiv 2103.00020, 2212.07143): a norm before the first block, eps 1e-5."""
    clip = {"pre_norm": True, "eps": 1e-5}
    laion, ft = "laion2b", "laion2b_ft_in12k_in1k"
    rows: tuple[tuple[str, int, int, Preprocess, str], ...] = (
        ("base", 32, 224, spec(224, CLIP, 0.9), ft),
        ("base", 16, 224, spec(224, CLIP, 0.95), ft),
        ("large", 14, 224, spec(224, INCEPTION, 1.0), ft),
        ("large", 14, 336, spec(336, INCEPTION, 1.0, "squash"), ft),
        ("huge", 14, 224, spec(224, CLIP, 1.0), ft),
        ("giant", 14, 224, spec(224, CLIP, 1.0), laion),
    )
    for size, patch, pixels, pre, tag in rows:
        name = f"vit_{size}_patch{patch}_clip_{pixels}"
        register_vit(name, sized(size, patch, **clip), pre, paper="arXiv 2212.07143", tag=tag, family="clip")
    quick = {**clip, "act": "quick_gelu"}
    for size, patch, pixels, crop, tag, licence in (
        ("base", 32, 224, 0.9, "laion400m_e32", "mit"),
        ("base", 16, 224, 1.0, "metaclip_2pt5b", "cc-by-nc-4.0"),
        ("large", 14, 224, 1.0, "dfn2b", "apple-ascl"),
        ("large", 14, 336, 1.0, "openai", "apache-2.0"),
        ("huge", 14, 224, 1.0, "dfn5b", "apple-ascl"),
    ):
        name = f"vit_{size}_patch{patch}_clip_quickgelu_{pixels}"
        pre = spec(pixels, CLIP, crop)
        config = sized(size, patch, **quick)
        register_vit(name, config, pre, paper="arXiv 2103.00020", tag=tag, licence=licence, family="clip")


def _siglip_towers() -> None:
    """Image towers of SigLIP (arXiv 2303.15343): no class token, attention pooling; ``gap`` ones pool by the mean."""
    rows: tuple[tuple[str, int, int, str, str], ...] = (
        ("base", 16, 224, "gelu", "v2_webli"),
        ("base", 16, 256, "gelu", "v2_webli"),
        ("base", 16, 384, "gelu", "v2_webli"),
        ("base", 16, 512, "gelu", "v2_webli"),
        ("large", 16, 256, "gelu", "v2_webli"),
        ("large", 16, 384, "gelu", "v2_webli"),
        ("so400m", 14, 224, "gelu", "v2_webli"),
        ("so400m", 14, 384, "gelu", "webli"),
        ("so400m", 16, 256, "gelu_tanh", "v2_webli"),
        # SigLIP 2 (arXiv 2502.14786) alone
        ("base", 32, 256, "gelu_tanh", "v2_webli"),
        ("large", 16, 512, "gelu_tanh", "v2_webli"),
        ("so400m", 14, 378, "gelu", "v2_webli"),
        ("so400m", 16, 384, "gelu_tanh", "v2_webli"),
        ("so400m", 16, 512, "gelu_tanh", "v2_webli"),
        ("giantopt", 16, 256, "gelu_tanh", "v2_webli"),
        ("giantopt", 16, 384, "gelu_tanh", "v2_webli"),
    )
    for size, patch, pixels, act, tag in rows:
        # 384 is no multiple of 14; these weights were trained with the remaining pixels cut off.
        parts = {"class_token": False, "act": act, "partial_patches": "crop"}
        pre = spec(pixels)
        kwargs: dict[str, Any] = {"paper": "arXiv 2303.15343", "tag": tag, "family": "siglip"}
        register_vit(f"vit_{size}_patch{patch}_siglip_{pixels}", sized(size, patch, pool="map", **parts), pre, **kwargs)
        if size == "base" and patch == 16:
            config = sized(size, patch, pool="avg", pool_norm=False, **parts)
            register_vit(f"vit_{size}_patch{patch}_siglip_gap_{pixels}", config, pre, **kwargs)


for _register in (_plain, _pooled, _deit, _dinov2, _clip_towers, _siglip_towers):
    _register()
