"""facebookresearch/deit: DeiT has timm's own keys, distilled or not; DeiT III names its layer scale otherwise."""

from __future__ import annotations

from visionzoo.weights.adapters.layout import Layout
from visionzoo.weights.adapters.rules import move
from visionzoo.weights.adapters.vit_common import PLAIN_VIT, same

DEIT = Layout(
    name="deit",
    about="facebookresearch/deit",
    family="vit",
    has_all=("cls_token", "pos_embed", "blocks.0.attn.qkv.bias", "blocks.0.norm1.weight"),
    has_any=("blocks.{i}.gamma_1",),  # without layer scale it is timm's own layout
    has_none=("mask_token", "reg_token", "blocks.0.attn.proj_l.weight"),  # the last is timm's CaiT
    rules=(
        *PLAIN_VIT,
        *same("dist_token", "head_dist.{p}"),
        move("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma"),
        move("blocks.{i}.gamma_2", "blocks.{i}.ls2.gamma"),
    ),
)
