"""microsoft/unilm's BEiT and BEiT v2: timm's keys, plus index buffers and what pretraining leaves behind."""

from __future__ import annotations

from visionzoo.weights.adapters.layout import BUFFER, MASK_TOKEN, PRETRAIN_HEAD, Layout
from visionzoo.weights.adapters.rules import Facts, StateDict
from visionzoo.weights.adapters.vit_common import PLAIN_VIT, beit_position_index, same, table_for_each_block

_TABLE = "attn.relative_position_bias_table"


def _own_tables(state: StateDict) -> StateDict:
    return table_for_each_block(state, "rel_pos_bias.relative_position_bias_table", f"blocks.{{}}.{_TABLE}", "blocks.")


def _indices(timm: StateDict, facts: Facts) -> StateDict:
    del facts
    return {k.replace("bias_table", "index"): beit_position_index(v) for k, v in timm.items() if k.endswith(_TABLE)}


BEIT = Layout(
    name="beit",
    about="microsoft/unilm, BEiT",
    family="vit",
    has_all=("cls_token", "blocks.0.attn.q_bias", "blocks.0.attn.qkv.weight"),
    has_any=(
        "blocks.{i}.attn.relative_position_index",
        "rel_pos_bias.relative_position_bias_table",
        "lm_head.weight",
        "mask_token",
    ),
    rules=(
        *PLAIN_VIT,
        *same("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias", f"blocks.{{i}}.{_TABLE}"),
        *same("blocks.{i}.gamma_1", "blocks.{i}.gamma_2"),
    ),
    ignore=(
        ("blocks.{i}.attn.relative_position_index", BUFFER),
        ("rel_pos_bias.relative_position_index", BUFFER),
        ("mask_token", MASK_TOKEN),
        ("lm_head.{x}", PRETRAIN_HEAD),
        ("cls_pt_layers.{x}", PRETRAIN_HEAD),
    ),
    prepare=_own_tables,
    complete=_indices,
)
