"""facebookresearch's DINO, DINOv2 and DINOv3 releases, and bytedance's iBOT."""

from __future__ import annotations

import re

import torch

from visionzoo.weights.adapters.layout import BUFFER, MASK_TOKEN, PRETRAIN_HEAD, Layout
from visionzoo.weights.adapters.rules import Facts, Rule, StateDict, Tensors, move
from visionzoo.weights.adapters.vit_common import (
    PATCH_EMBED,
    PLAIN_VIT,
    gated,
    registers_after_positions,
    same,
    with_class_position,
)

_DINO_HEADS = (
    ("head.mlp.{x}", PRETRAIN_HEAD),
    ("head.last_layer.{x}", PRETRAIN_HEAD),
    ("head.mlp2.{x}", PRETRAIN_HEAD),  # of patches, in iBOT
    ("head.last_layer2.{x}", PRETRAIN_HEAD),
    ("dino_head.{x}", PRETRAIN_HEAD),
    ("ibot_head.{x}", PRETRAIN_HEAD),
)

DINO = Layout(
    name="dino",
    about="facebookresearch/dino or bytedance/ibot",
    family="vit",
    has_all=("cls_token", "pos_embed", "blocks.0.attn.qkv.weight"),
    has_any=("head.mlp.{x}", "head.last_layer.{x}", "masked_embed"),
    rules=PLAIN_VIT,
    ignore=(("masked_embed", MASK_TOKEN), *_DINO_HEADS),
    # Its checkpoints hold the trunk under ``backbone.`` and the projection head beside it.
    base=("backbone.",),
    refine=with_class_position,
)


def _without_chunks(state: StateDict) -> StateDict:
    """FSDP training stores ``blocks.<chunk>.<block>.``, where the number of the block counts through all chunks."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in state.items()}


def _mask_token(timm: StateDict, facts: Facts) -> StateDict:
    del facts
    return {"mask_token": torch.zeros_like(timm["cls_token"][0])}  # what its own constructor puts there


DINOV2 = Layout(
    name="dinov2",
    about="facebookresearch/dinov2",
    family="vit",
    has_all=("cls_token", "pos_embed", "mask_token"),
    has_any=("blocks.{i}.ls1.gamma", "blocks.{i}.{j}.ls1.gamma"),
    rules=(
        registers_after_positions("register_tokens", "cls_token", "pos_embed"),
        gated("blocks.{i}.mlp.w12", "blocks.{i}.mlp.w3"),
        *PLAIN_VIT,
        *same("blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma"),
    ),
    ignore=(("mask_token", MASK_TOKEN), *_DINO_HEADS),
    base=("backbone.",),
    prepare=_without_chunks,
    refine=lambda timm, facts: timm if "reg_token" in timm else with_class_position(timm, facts),
    complete=_mask_token,
)


def _split_masked_bias(tensors: Tensors) -> Tensors:
    query, key, value = tensors[0].chunk(3)
    if torch.nan_to_num(tensors[1]).chunk(3)[1].any():
        raise ValueError("its mask keeps the bias of the keys, which timm's DINOv3 does not have")
    del key  # masked to zero
    return [query, value]


def _join_masked_bias(tensors: Tensors, facts: Facts) -> Tensors:
    del facts
    query, value = tensors
    zero, one = torch.zeros_like(query), torch.ones_like(query)
    return [torch.cat((query, zero, value)), torch.cat((one, zero, one))]


def _dinov3_rest(timm: StateDict, facts: Facts) -> StateDict:
    """The mask token, and biases of zero where timm leaves them out because training ended with all of them at zero."""
    del facts
    rest = {"mask_token": torch.zeros_like(timm["cls_token"][0])}
    for key, weight in timm.items():
        if key.endswith("attn.qkv.weight") and key.replace("qkv.weight", "q_bias") not in timm:
            stem, width = key.removesuffix("weight"), weight.shape[0] // 3
            zero = weight.new_zeros(width)
            rest |= dict(
                zip((stem + "bias", stem + "bias_mask"), _join_masked_bias([zero, zero], Facts()), strict=True)
            )
    return rest


DINOV3 = Layout(
    name="dinov3",
    about="facebookresearch/dinov3, ViT",
    family="vit",
    has_all=("cls_token", "storage_tokens", "blocks.0.attn.qkv.weight"),
    rules=(
        Rule(
            ("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv.bias_mask"),
            ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias"),
            _split_masked_bias,
            _join_masked_bias,
        ),
        Rule(
            tuple(f"blocks.{{i}}.mlp.{n}.{{p}}" for n in ("w1", "w2", "w3")),
            tuple(f"blocks.{{i}}.mlp.{n}.{{p}}" for n in ("fc1_g", "fc1_x", "fc2")),
            list,
            lambda t, _facts: list(t),
        ),
        *same("cls_token", PATCH_EMBED, "blocks.{i}.norm1.{p}", "blocks.{i}.norm2.{p}", "norm.{p}", "head.{p}"),
        *same(
            "blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.proj.{p}", "blocks.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.fc2.{p}"
        ),
        move("storage_tokens", "reg_token"),
        move("blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1"),
        move("blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2"),
    ),
    ignore=(
        ("mask_token", MASK_TOKEN),
        ("rope_embed.periods", BUFFER),
        ("local_cls_norm.{p}", "norm of local crops, used in pretraining only"),
        *_DINO_HEADS,
    ),
    base=("backbone.",),
    complete=_dinov3_rest,
)
