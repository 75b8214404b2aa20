"""facebookresearch/mae: the encoder is a ViT under timm's keys; the decoder and the mask token lie beside it."""

from __future__ import annotations

from visionzoo.weights.adapters.layout import DECODER, MASK_TOKEN, Layout
from visionzoo.weights.adapters.vit_common import PLAIN_VIT, with_class_position

MAE = Layout(
    name="mae",
    about="facebookresearch/mae, the encoder",
    family="vit",
    has_all=("cls_token", "pos_embed", "blocks.0.attn.qkv.weight"),
    has_any=("decoder_embed.weight", "decoder_pos_embed"),
    rules=PLAIN_VIT,
    ignore=(
        ("mask_token", MASK_TOKEN),
        ("decoder_{x}", DECODER),
    ),
    refine=with_class_position,
)
