"""Hugging Face transformers: ViT, DeiT, ViTMAE and BEiT.

Names in files (which ``from_pretrained`` of every version reads) and names in memory since version 5 differ, so each
layout comes twice: ``transformers_*`` for files, ``transformers5_*`` for ``state_dict()``.
"""

from __future__ import annotations

from dataclasses import replace

from visionzoo.weights.adapters.layout import BUFFER, DECODER, MASK_TOKEN, POOLER, PRETRAIN_HEAD, Layout
from visionzoo.weights.adapters.rules import join, move
from visionzoo.weights.adapters.vit_common import table_for_each_block, with_class_position

LAYER = "encoder.layer.{i}."
FIRST = LAYER.format(i=0)
EMBED = (
    move("embeddings.cls_token", "cls_token"),
    move("embeddings.position_embeddings", "pos_embed"),
    move("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
)
ATTENTION = (
    join((LAYER + f"attention.attention.{n}.{{p}}" for n in ("query", "key", "value")), "blocks.{i}.attn.qkv.{p}"),
    # Without a bias of the keys, timm keeps the other two apart.
    move(LAYER + "attention.attention.query.bias", "blocks.{i}.attn.q_bias"),
    move(LAYER + "attention.attention.value.bias", "blocks.{i}.attn.v_bias"),
    move(LAYER + "attention.output.dense.{p}", "blocks.{i}.attn.proj.{p}"),
)
_BLOCK = (
    *ATTENTION,
    move(LAYER + "layernorm_before.{p}", "blocks.{i}.norm1.{p}"),
    move(LAYER + "layernorm_after.{p}", "blocks.{i}.norm2.{p}"),
    move(LAYER + "intermediate.dense.{p}", "blocks.{i}.mlp.fc1.{p}"),
    move(LAYER + "output.dense.{p}", "blocks.{i}.mlp.fc2.{p}"),
)
NORM = move("layernorm.{p}", "norm.{p}")
#: Names in files to names in memory since version 5. The order counts: the last pair is part of the one before it.
V5 = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)
_V5_LAYERS = (("encoder.layer.", "layers."), *V5)
IN_MEMORY = ", in memory since transformers 5"

TRANSFORMERS_VIT = Layout(
    name="transformers_vit",
    about="transformers' ViT and the encoder of its ViTMAE",
    family="vit",
    has_all=("embeddings.cls_token", "embeddings.position_embeddings", FIRST + "layernorm_before.weight"),
    has_none=("embeddings.distillation_token", FIRST + "lambda_1"),
    rules=(*EMBED, *_BLOCK, NORM, move("classifier.{p}", "head.{p}")),
    base=("vit.",),
    heads=("classifier.",),
    ignore=(
        ("pooler.dense.{p}", POOLER),
        ("embeddings.mask_token", MASK_TOKEN),
        ("decoder.{x}", DECODER),
    ),
    refine=with_class_position,
)

TRANSFORMERS_DEIT = Layout(
    name="transformers_deit",
    about="transformers' DeiT",
    family="vit",
    has_all=(*TRANSFORMERS_VIT.has_all, "embeddings.distillation_token"),
    rules=(
        *EMBED,
        *_BLOCK,
        NORM,
        move("embeddings.distillation_token", "dist_token"),
        move("cls_classifier.{p}", "head.{p}"),
        move("distillation_classifier.{p}", "head_dist.{p}"),
        move("classifier.{p}", "head.{p}"),  # DeiTForImageClassification, which leaves the distilled head out
    ),
    base=("deit.",),
    heads=("classifier.", "cls_classifier.", "distillation_classifier."),
    ignore=(("pooler.dense.{p}", POOLER), ("embeddings.mask_token", MASK_TOKEN), ("decoder.{x}", DECODER)),
)

_SHARED = "encoder.relative_position_bias.relative_position_bias_table"
_OWN = LAYER + "attention.attention.relative_position_bias.relative_position_bias_table"

TRANSFORMERS_BEIT = Layout(
    name="transformers_beit",
    about="transformers' BEiT",
    family="vit",
    has_all=("embeddings.cls_token", FIRST + "layernorm_before.weight", FIRST + "lambda_1"),
    rules=(
        *EMBED,
        *_BLOCK,
        NORM,
        move(_OWN, "blocks.{i}.attn.relative_position_bias_table"),
        move(LAYER + "lambda_1", "blocks.{i}.gamma_1"),
        move(LAYER + "lambda_2", "blocks.{i}.gamma_2"),
        move("pooler.layernorm.{p}", "fc_norm.{p}"),
        move("classifier.{p}", "head.{p}"),
    ),
    base=("beit.",),
    heads=("classifier.",),
    ignore=(
        ("{x}.relative_position_index", BUFFER),
        ("embeddings.mask_token", MASK_TOKEN),
        ("lm_head.{p}", PRETRAIN_HEAD),
    ),
    prepare=lambda state: table_for_each_block(state, _SHARED, _OWN.replace("{i}", "{}"), "encoder.layer."),
)

_BEIT_V5 = (
    ("attention.attention.relative_position_bias.", "relative_position_bias."),
    ("encoder.relative_position_bias.", "shared_position_bias."),
    *_V5_LAYERS,
)

TRANSFORMERS_VIT_LAYOUTS = (
    TRANSFORMERS_VIT,
    TRANSFORMERS_DEIT,
    TRANSFORMERS_BEIT,
    TRANSFORMERS_VIT.renamed("transformers5_vit", TRANSFORMERS_VIT.about + IN_MEMORY, *_V5_LAYERS),
    TRANSFORMERS_DEIT.renamed("transformers5_deit", TRANSFORMERS_DEIT.about + IN_MEMORY, *_V5_LAYERS),
    replace(
        TRANSFORMERS_BEIT.renamed("transformers5_beit", TRANSFORMERS_BEIT.about + IN_MEMORY, *_BEIT_V5),
        prepare=lambda state: table_for_each_block(
            state,
            "shared_position_bias.relative_position_bias_table",
            "layers.{}.relative_position_bias.relative_position_bias_table",
            "layers.",
        ),
    ),
)
