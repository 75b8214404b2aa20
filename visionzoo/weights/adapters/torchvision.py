"""torchvision's ``vit_*``, ``swin_*`` and ``swin_v2_*``."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from visionzoo.weights.adapters.layout import BUFFER, Layout
from visionzoo.weights.adapters.rules import Facts, Rule, StateDict, Tensors, move
from visionzoo.weights.adapters.swin import window_of
from visionzoo.weights.adapters.vit_common import relative_index, with_class_position

_LAYER = "encoder.layers.encoder_layer_{i}."


def _current_mlp_names(state: StateDict) -> StateDict:
    """The published files still have the names of torchvision 0.12."""
    return {re.sub(r"\.mlp\.linear_([12])\.", lambda m: f".mlp.{'03'[int(m[1]) - 1]}.", k): v for k, v in state.items()}


TORCHVISION_VIT = Layout(
    name="torchvision_vit",
    about="torchvision's VisionTransformer",
    family="vit",
    has_all=("class_token", "conv_proj.weight", "encoder.pos_embedding"),
    rules=(
        move("class_token", "cls_token"),
        move("encoder.pos_embedding", "pos_embed"),
        move("conv_proj.{p}", "patch_embed.proj.{p}"),
        move(_LAYER + "ln_1.{p}", "blocks.{i}.norm1.{p}"),
        move(_LAYER + "self_attention.in_proj_{p}", "blocks.{i}.attn.qkv.{p}"),
        move(_LAYER + "self_attention.out_proj.{p}", "blocks.{i}.attn.proj.{p}"),
        move(_LAYER + "ln_2.{p}", "blocks.{i}.norm2.{p}"),
        move(_LAYER + "mlp.0.{p}", "blocks.{i}.mlp.fc1.{p}"),
        move(_LAYER + "mlp.3.{p}", "blocks.{i}.mlp.fc2.{p}"),
        move("encoder.ln.{p}", "norm.{p}"),
        move("heads.head.{p}", "head.{p}"),
    ),
    prepare=_current_mlp_names,
    refine=with_class_position,
)

# ``features`` alternates: 0 the stem, then stages at odd numbers and patch mergings at even ones.
_BLOCK, _OURS = "features.{i*2+1}.{j}.", "layers.{i}.blocks.{j}."


def _without_key_bias(tensors: Tensors) -> Tensors:
    query, _, value = tensors[0].chunk(3)  # torchvision sets the keys' part to zero in each forward pass
    return [query, value]


def _with_key_bias(tensors: Tensors, facts: Facts) -> Tensors:
    del facts
    return [torch.cat((tensors[0], torch.zeros_like(tensors[0]), tensors[1]))]


def _log_coords(window: int) -> Tensor:
    """(1, 2w - 1, 2w - 1, 2) log-spaced offsets in torchvision's scale (Swin v2, section 3.3)."""
    offsets = torch.arange(-(window - 1), window, dtype=torch.float32) * 8 / (window - 1)
    offsets = torch.sign(offsets) * torch.log2(offsets.abs() + 1.0) / 3.0
    return torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1).unsqueeze(0)


def _buffers(timm: StateDict, facts: Facts) -> StateDict:
    result: StateDict = {}
    for key, tensor in timm.items():
        found = re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.(relative_position_bias_table|logit_scale)", key)
        if found is None:
            continue
        stem = f"features.{int(found[1]) * 2 + 1}.{found[2]}.attn."
        if found[3] == "logit_scale":
            if facts.window_size is None:
                raise ValueError("the layout 'torchvision_swin' of Swin v2 needs Facts(window_size=...)")
            window = facts.window_size
            result[stem + "relative_coords_table"] = _log_coords(window)
        else:
            window = window_of(tensor)
        result[stem + "relative_position_index"] = relative_index(window).flatten()
    return result


TORCHVISION_SWIN = Layout(
    name="torchvision_swin",
    about="torchvision's SwinTransformer, v1 and v2",
    family="swin",
    has_all=("features.0.0.weight", "features.0.2.weight", "features.1.0.attn.qkv.weight"),
    rules=(
        move("features.0.0.{p}", "patch_embed.proj.{p}"),
        move("features.0.2.{p}", "patch_embed.norm.{p}"),
        move(_BLOCK + "norm1.{p}", _OURS + "norm1.{p}"),
        move(_BLOCK + "attn.relative_position_bias_table", _OURS + "attn.relative_position_bias_table"),
        Rule(
            # The scale tells v2, whose biases timm keeps apart.
            (_BLOCK + "attn.logit_scale", _BLOCK + "attn.qkv.bias"),
            tuple(_OURS + f"attn.{n}" for n in ("logit_scale", "q_bias", "v_bias")),
            lambda t: [t[0], *_without_key_bias(t[1:])],
            lambda t, facts: [t[0], *_with_key_bias(t[1:], facts)],
        ),
        move(_BLOCK + "attn.qkv.{p}", _OURS + "attn.qkv.{p}"),
        move(_BLOCK + "attn.cpb_mlp.{k}.{p}", _OURS + "attn.cpb_mlp.{k}.{p}"),
        move(_BLOCK + "attn.proj.{p}", _OURS + "attn.proj.{p}"),
        move(_BLOCK + "norm2.{p}", _OURS + "norm2.{p}"),
        move(_BLOCK + "mlp.0.{p}", _OURS + "mlp.fc1.{p}"),
        move(_BLOCK + "mlp.3.{p}", _OURS + "mlp.fc2.{p}"),
        move("features.{i*2+2}.{x}", "layers.{i+1}.downsample.{x}"),
        move("norm.{p}", "norm.{p}"),
        move("head.{p}", "head.fc.{p}"),
    ),
    ignore=(
        ("{x}.relative_position_index", BUFFER),
        ("{x}.relative_coords_table", BUFFER),
    ),
    complete=_buffers,
)
