"""Hugging Face transformers: DINOv2, with or without registers, and DINOv3; named as ``transformers_vit`` explains."""

from __future__ import annotations

from dataclasses import replace

import torch

from visionzoo.weights.adapters.layout import MASK_TOKEN, Layout
from visionzoo.weights.adapters.rules import Facts, Rule, StateDict, Tensors, join, move
from visionzoo.weights.adapters.transformers_vit import ATTENTION, EMBED, FIRST, IN_MEMORY, LAYER, NORM, V5
from visionzoo.weights.adapters.vit_common import gated, is_gated, registers_after_positions, with_class_position


def _zero_mask_token(timm: StateDict, facts: Facts) -> StateDict:
    del facts
    return {"embeddings.mask_token": torch.zeros_like(timm["cls_token"][0])}  # its initial value


#: It reads the class token beside the mean of the patches: twice the width, so that it never is timm's head.
_WIDE_HEAD = replace(move("classifier.{p}", "head.{p}"), fits=lambda _tensors: False)

TRANSFORMERS_DINOV2 = Layout(
    name="transformers_dinov2",
    about="transformers' DINOv2",
    family="vit",
    has_all=(
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        FIRST + "attention.attention.query.weight",  # tells it from the names in memory
        FIRST + "layer_scale1.lambda1",
    ),
    has_none=("embeddings.register_tokens",),
    rules=(
        *EMBED,
        *ATTENTION,
        move(LAYER + "norm1.{p}", "blocks.{i}.norm1.{p}"),
        move(LAYER + "norm2.{p}", "blocks.{i}.norm2.{p}"),
        move(LAYER + "layer_scale1.lambda1", "blocks.{i}.ls1.gamma"),
        move(LAYER + "layer_scale2.lambda1", "blocks.{i}.ls2.gamma"),
        gated(LAYER + "mlp.weights_in", LAYER + "mlp.weights_out"),
        move(LAYER + "mlp.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
        move(LAYER + "mlp.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
        NORM,
        _WIDE_HEAD,
    ),
    base=("dinov2.",),
    heads=("classifier.",),
    ignore=(("embeddings.mask_token", MASK_TOKEN),),
    refine=with_class_position,
    complete=_zero_mask_token,
)

TRANSFORMERS_DINOV2_REGISTERS = replace(
    TRANSFORMERS_DINOV2,
    name="transformers_dinov2_registers",
    about="transformers' DINOv2 with registers",
    has_all=(*TRANSFORMERS_DINOV2.has_all, "embeddings.register_tokens"),
    has_none=(),
    rules=(
        registers_after_positions(
            "embeddings.register_tokens", "embeddings.cls_token", "embeddings.position_embeddings"
        ),
        *TRANSFORMERS_DINOV2.rules,
    ),
    base=("dinov2_with_registers.",),
    refine=lambda timm, _facts: timm,
)


def _pack(tensors: Tensors) -> Tensors:
    gate, up, down, gate_bias, up_bias, down_bias = tensors
    return [torch.cat((gate, up)), down, torch.cat((gate_bias, up_bias)), down_bias]


def _unpack(tensors: Tensors, facts: Facts) -> Tensors:
    del facts
    both, down, both_bias, down_bias = tensors
    return [*both.chunk(2), down, *both_bias.chunk(2), down_bias]


_GATE_APART = Rule(
    tuple(f"{LAYER}mlp.{n}_proj.{p}" for p in ("weight", "bias") for n in ("gate", "up", "down")),
    tuple(f"blocks.{{i}}.mlp.{n}.{p}" for p in ("weight", "bias") for n in ("fc1", "fc2")),
    _pack,
    _unpack,
    is_gated,
)


def _dinov2_in_memory(layout: Layout) -> Layout:
    renamed = layout.renamed(layout.name.replace("_", "5_", 1), layout.about + IN_MEMORY, *V5)
    return replace(renamed, rules=(_GATE_APART, *renamed.rules))


def _dinov3_rest(timm: StateDict, facts: Facts) -> StateDict:
    """The mask token, and biases of zero where timm leaves them out because training ended with all of them at zero."""
    del facts
    rest = {"embeddings.mask_token": torch.zeros_like(timm["cls_token"])}
    for key, weight in timm.items():
        if key.endswith("attn.qkv.weight") and key.replace("qkv.weight", "q_bias") not in timm:
            stem = key.replace("blocks.", "layer.").replace("attn.qkv.weight", "attention.")
            rest |= {f"{stem}{n}_proj.bias": weight.new_zeros(weight.shape[0] // 3) for n in ("q", "v")}
    return rest


TRANSFORMERS_DINOV3 = Layout(
    name="transformers_dinov3",
    about="transformers' DINOv3 ViT",
    family="vit",
    has_all=("embeddings.cls_token", "embeddings.patch_embeddings.weight", "layer.0.layer_scale1.lambda1"),
    rules=(
        move("embeddings.cls_token", "cls_token"),
        move("embeddings.register_tokens", "reg_token"),
        move("embeddings.patch_embeddings.{p}", "patch_embed.proj.{p}"),
        join((f"layer.{{i}}.attention.{n}_proj.weight" for n in "qkv"), "blocks.{i}.attn.qkv.weight"),
        move("layer.{i}.attention.q_proj.bias", "blocks.{i}.attn.q_bias"),
        move("layer.{i}.attention.v_proj.bias", "blocks.{i}.attn.v_bias"),
        move("layer.{i}.attention.o_proj.{p}", "blocks.{i}.attn.proj.{p}"),
        move("layer.{i}.layer_scale1.lambda1", "blocks.{i}.gamma_1"),
        move("layer.{i}.layer_scale2.lambda1", "blocks.{i}.gamma_2"),
        move("layer.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
        move("layer.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
        Rule(
            ("layer.{i}.mlp.gate_proj.{p}", "layer.{i}.mlp.up_proj.{p}"),
            ("blocks.{i}.mlp.fc1_g.{p}", "blocks.{i}.mlp.fc1_x.{p}"),
            list,
            lambda t, _facts: list(t),
        ),
        move("layer.{i}.mlp.up_proj.{p}", "blocks.{i}.mlp.fc1.{p}"),
        move("layer.{i}.mlp.down_proj.{p}", "blocks.{i}.mlp.fc2.{p}"),
        move("norm.{p}", "norm.{p}"),
    ),
    ignore=(("embeddings.mask_token", MASK_TOKEN),),
    complete=_dinov3_rest,
)

TRANSFORMERS_DINO_LAYOUTS = (
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_DINOV2_REGISTERS,
    TRANSFORMERS_DINOV3,
    _dinov2_in_memory(TRANSFORMERS_DINOV2),
    _dinov2_in_memory(TRANSFORMERS_DINOV2_REGISTERS),
    replace(
        TRANSFORMERS_DINOV3.renamed(
            "transformers5_dinov3", TRANSFORMERS_DINOV3.about + IN_MEMORY, ("layer.", "model.layer.")
        ),
        complete=lambda timm, facts: {
            k.replace("layer.", "model.layer."): v for k, v in _dinov3_rest(timm, facts).items()
        },
    ),
)
