"""Hugging Face transformers: Swin, named as ``transformers_vit`` explains, and Swin v2, whose names did not change."""

from __future__ import annotations

from visionzoo.weights.adapters.layout import BUFFER, DECODER, MASK_TOKEN, Layout
from visionzoo.weights.adapters.rules import join, move
from visionzoo.weights.adapters.transformers_vit import IN_MEMORY, V5

_BLOCK, _OURS = "encoder.layers.{i}.blocks.{j}.", "layers.{i}.blocks.{j}."
_SELF = _BLOCK + "attention.self."
_FIRST = _SELF.format(i=0, j=0)

_SHARED = (
    move("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
    move("embeddings.norm.{p}", "patch_embed.norm.{p}"),
    join((f"{_SELF}{n}.{{p}}" for n in ("query", "key", "value")), _OURS + "attn.qkv.{p}"),
    move(_BLOCK + "attention.output.dense.{p}", _OURS + "attn.proj.{p}"),
    move(_BLOCK + "layernorm_before.{p}", _OURS + "norm1.{p}"),
    move(_BLOCK + "layernorm_after.{p}", _OURS + "norm2.{p}"),
    move(_BLOCK + "intermediate.dense.{p}", _OURS + "mlp.fc1.{p}"),
    move(_BLOCK + "output.dense.{p}", _OURS + "mlp.fc2.{p}"),
    move("encoder.layers.{i}.downsample.{x}", "layers.{i+1}.downsample.{x}"),
    move("layernorm.{p}", "norm.{p}"),
    move("classifier.{p}", "head.fc.{p}"),
)
_IGNORE = (
    ("{x}.relative_position_index", BUFFER),
    ("{x}.relative_coords_table", BUFFER),
    ("embeddings.mask_token", MASK_TOKEN),
    ("decoder.{x}", DECODER),
)

TRANSFORMERS_SWIN = Layout(
    name="transformers_swin",
    about="transformers' Swin",
    family="swin",
    has_all=("embeddings.patch_embeddings.projection.weight", _FIRST + "relative_position_bias_table"),
    rules=(*_SHARED, move(_SELF + "relative_position_bias_table", _OURS + "attn.relative_position_bias_table")),
    base=("swin.",),
    heads=("classifier.",),
    ignore=_IGNORE,
)

TRANSFORMERS_SWINV2 = Layout(
    name="transformers_swinv2",
    about="transformers' Swin v2",
    family="swin",
    has_all=("embeddings.patch_embeddings.projection.weight", _FIRST + "logit_scale"),
    rules=(
        *_SHARED,
        move(_SELF + "query.bias", _OURS + "attn.q_bias"),
        move(_SELF + "value.bias", _OURS + "attn.v_bias"),
        move(_SELF + "logit_scale", _OURS + "attn.logit_scale"),
        move(_SELF + "continuous_position_bias_mlp.{k}.{p}", _OURS + "attn.cpb_mlp.{k}.{p}"),
    ),
    base=("swinv2.",),
    heads=("classifier.",),
    ignore=_IGNORE,
)

_SWIN_V5 = (
    ("attention.self.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
    *(
        (f"attention.self.{old}", f"attention.{new}_proj")
        for old, new in (("query", "q"), ("key", "k"), ("value", "v"))
    ),
    *V5,
)

TRANSFORMERS_SWIN_LAYOUTS = (
    TRANSFORMERS_SWIN,
    TRANSFORMERS_SWINV2,
    TRANSFORMERS_SWIN.renamed("transformers5_swin", TRANSFORMERS_SWIN.about + IN_MEMORY, *_SWIN_V5),
)
