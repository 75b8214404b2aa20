"""ViTs with rotary positions: DINOv3 (arXiv 2508.10104), RoPE-ViT (arXiv 2403.13298) and timm's own. Names are timm's.

Legend: B batch, H heads, N patch tokens, n visible ones, d head width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from visionzoo.backbones.vit import VisionTransformer, ViTConfig
from visionzoo.backbones.vit_variants import IMAGENET, INCEPTION, register_vit, sized, spec
from visionzoo.layers.attention import Attention, GammaBlock, QVBiasAttention
from visionzoo.layers.rope import MixedRope, RopeSpec, grid_coordinates, rope_table
from visionzoo.types import Tokens


@dataclass(frozen=True, kw_only=True)
class RopeViTConfig(ViTConfig):
    """A ViT flavour with rotary positions."""

    rope: RopeSpec
    key_bias: bool = True  #: False: queries and values have a bias, keys none; read only with ``qkv_bias``


def rescale_residuals(blocks: Iterable[Any]) -> None:
    """Divide the last weights of both branches of block i by sqrt(2 i), so that depth does not add up (BEiT's init)."""
    with torch.no_grad():
        for i, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_((2.0 * i) ** 0.5)
            block.mlp.fc2.weight.div_((2.0 * i) ** 0.5)


class RopeVisionTransformer(VisionTransformer):
    """A ViT whose queries and keys are turned by their place in the grid. Prefix tokens have none."""

    config: RopeViTConfig
    block_class = GammaBlock

    def _build_positions(self) -> None:
        super()._build_positions()
        cfg = self.config
        self.rope = (
            MixedRope(cfg.embed_dim // cfg.num_heads, cfg.depth, cfg.num_heads, cfg.rope.temperature)
            if cfg.rope.learned
            else None
        )

    def _build_attention(self, index: int) -> nn.Module:
        del index
        cfg = self.config
        if cfg.qkv_bias and not cfg.key_bias:
            return QVBiasAttention(cfg.embed_dim, cfg.num_heads, rotate_half=cfg.rope.half)
        return Attention(cfg.embed_dim, cfg.num_heads, qkv_bias=cfg.qkv_bias, rotate_half=cfg.rope.half)

    def _init_weights(self) -> None:
        super()._init_weights()
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        rescale_residuals(self.blocks)

    def block_args(self, tokens: Tokens) -> list[dict[str, Any]]:
        """Each block's rotation table, of the tokens that are there: (N, 2 d), learned ones (H, N, 2 d); with a
        leading B where each image keeps its own."""
        cfg = self.config
        if self.rope is None:
            table = rope_table(cfg.rope, cfg.embed_dim // cfg.num_heads, tokens.grid_size, tokens.x)
            if tokens.keep is not None:
                table = table[tokens.keep].unsqueeze(1)  # (B, 1, n, 2 d)
            return [{"rope": table}] * len(self.blocks)
        tables = self.rope(grid_coordinates(cfg.rope, tokens.grid_size, tokens.x.device))
        if tokens.keep is not None:
            tables = tables[:, :, tokens.keep].transpose(1, 2)  # (depth, B, H, n, 2 d)
        return [{"rope": table} for table in tables.unbind(0)]

    def no_weight_decay(self) -> set[str]:
        """The ViT's tokens, and frequencies that are learned."""
        return super().no_weight_decay() | ({"rope.freqs"} if self.rope is not None else set())


def _register(name: str, config: RopeViTConfig, *args: Any, **kwargs: Any) -> None:
    register_vit(name, config, *args, model_class=RopeVisionTransformer, **kwargs)


def _rope(size: str, rope: RopeSpec, **parts: Any) -> RopeViTConfig:
    base = sized(size, 16, layer_scale=1e-5, **{"position": "none", "prefix_positions": False, **parts})
    return RopeViTConfig(**vars(base), rope=rope)


def _rope_vits() -> None:
    """RoPE-ViT: axial or mixed frequencies, alone or with a learned position table (``ape``)."""
    for size in ("small", "base", "large"):
        for infix, temperature in (("", 100.0), ("_mixed", 10.0)):
            rope = RopeSpec(axes="xy", temperature=temperature, learned=infix == "_mixed")
            for suffix, position in (("", "none"), ("_ape", "learned")):
                _register(
                    f"vit_{size}_patch16_rope{infix}{suffix}_224",
                    _rope(size, rope, position=position),
                    spec(224, IMAGENET),
                    paper="arXiv 2403.13298",
                    tag="naver_in1k",
                    family="rope_vit",
                )


def _timm_rope_vits() -> None:
    """timm's own: registers in place of a class token, average pooling."""
    for size, qkv_bias, width in (
        ("medium", True, {}),
        ("medium", False, {"depth": 20}),
        ("base", True, {}),
    ):
        config = replace(
            _rope(size, RopeSpec(reference_grid=(16, 16)), class_token=False, registers=1, pool="avg", **width),
            qkv_bias=qkv_bias,
            key_bias=False,
        )
        name = "mediumd" if width else size
        _register(
            f"vit_{name}_patch16_rope_reg1_gap_256",
            config,
            spec(256, INCEPTION, 0.95),
            paper="timm",
            tag="sbb_in1k",
            licence="mit",
            family="rope_vit",
        )


def _dinov3() -> None:
    """DINOv3. Its training never moved the bias of ``qkv`` from zero: ``qkvb`` names the models that keep it.

    The authors read the class token; timm, and so ``pooled``, averages the patches.
    """
    rope = RopeSpec(coordinates="centered", temperature=100.0, half=True)
    swiglu = {"mlp": "swiglu"}
    for name, size, parts in (
        ("small", "small", {}),
        ("small_plus", "small", swiglu),
        ("base", "base", {}),
        ("large", "large", {}),
        ("huge_plus", "huge", {**swiglu, "num_heads": 20}),
    ):
        for suffix, qkv_bias in (("", False), ("_qkvb", True)):
            config = replace(
                _rope(size, rope, registers=4, pool="avg", pool_norm=False, eps=1e-5, **parts),
                qkv_bias=qkv_bias,
                key_bias=False,
            )
            _register(
                f"vit_{name}_patch16_dinov3{suffix}",
                config,
                spec(256, IMAGENET, 1.0),
                paper="arXiv 2508.10104",
                tag="lvd1689m",
                licence="dinov3-license",
                family="dinov3",
            )


for _group in (_rope_vits, _timm_rope_vits, _dinov3):
    _group()
