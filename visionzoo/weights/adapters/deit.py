"""facebookresearch/deit: DeiT has timm's own keys, distilled or not; DeiT III names its layer scale otherwise."""

from __future__ import annotations

from visionzoo.weights.adapters.layout import Layout
from visionzoo.weights.adapters.rules import move
from visionzoo.weights.adapters.vit_common import PLAIN_VIT, same

DEIT = Layout(
    name="deit",
    about="facebookresearch/deit",
    family="vit",
    has_all=("cls_token", "pos_embed", "blocks.0.attn.qkv.weight"),
    has_any=("blocks.{i}.gamma_1", "dist_token"),
    has_none=("blocks.0.attn.q_bias", "mask_token", "reg_token"),
    rules=(
        *PLAIN_VIT,
        *same("dist_token", "head_dist.{p}"),
        move("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma"),
        move("blocks.{i}.gamma_2", "blocks.{i}.ls2.gamma"),
    ),
)
