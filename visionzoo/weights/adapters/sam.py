"""Segment Anything, as Meta's segment-anything and transformers' SamModel store it.

Our keys are Meta's, but for the image encoder's, which are timm's.
"""

from __future__ import annotations

from collections.abc import Iterable

from visionzoo.weights.adapters.layout import Layout
from visionzoo.weights.adapters.rules import Rule, StateDict, move

_ENCODER = "image_encoder."
_TIED = "prompt_encoder.shared_embedding.positional_embedding"
_POSITIONS = "shared_image_embedding.positional_embedding"
_REST = "prompt encoder and mask decoder of SAM"


def _same(*names: str) -> list[tuple[str, str]]:
    return [(name, name) for name in names]


#: Foreign and our names of the image encoder's tensors.
_META_ENCODER = [
    *_same("pos_embed", "patch_embed.proj.{p}"),
    *_same(*(f"blocks.{{i}}.{name}.{{p}}" for name in ("norm1", "norm2", "attn.qkv", "attn.proj"))),
    *_same("blocks.{i}.attn.rel_pos_h", "blocks.{i}.attn.rel_pos_w"),
    ("blocks.{i}.mlp.lin1.{p}", "blocks.{i}.mlp.fc1.{p}"),
    ("blocks.{i}.mlp.lin2.{p}", "blocks.{i}.mlp.fc2.{p}"),
    *_same("neck.{i}.{p}"),
]
_HF_ENCODER = [
    ("pos_embed", "pos_embed"),
    ("patch_embed.projection.{p}", "patch_embed.proj.{p}"),
    ("layers.{i}.layer_norm1.{p}", "blocks.{i}.norm1.{p}"),
    ("layers.{i}.layer_norm2.{p}", "blocks.{i}.norm2.{p}"),
    ("layers.{i}.attn.{x}", "blocks.{i}.attn.{x}"),
    ("layers.{i}.mlp.lin1.{p}", "blocks.{i}.mlp.fc1.{p}"),
    ("layers.{i}.mlp.lin2.{p}", "blocks.{i}.mlp.fc2.{p}"),
    ("neck.conv1.{p}", "neck.0.{p}"),
    ("neck.layer_norm1.{p}", "neck.1.{p}"),
    ("neck.conv2.{p}", "neck.2.{p}"),
    ("neck.layer_norm2.{p}", "neck.3.{p}"),
]
_HF_REST = [
    (_POSITIONS, "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    ("prompt_encoder.point_embed.{i}.weight", "prompt_encoder.point_embeddings.{i}.weight"),
    *_same("prompt_encoder.not_a_point_embed.weight", "prompt_encoder.no_mask_embed.weight"),
    ("prompt_encoder.mask_embed.conv1.{p}", "prompt_encoder.mask_downscaling.0.{p}"),
    ("prompt_encoder.mask_embed.layer_norm1.{p}", "prompt_encoder.mask_downscaling.1.{p}"),
    ("prompt_encoder.mask_embed.conv2.{p}", "prompt_encoder.mask_downscaling.3.{p}"),
    ("prompt_encoder.mask_embed.layer_norm2.{p}", "prompt_encoder.mask_downscaling.4.{p}"),
    ("prompt_encoder.mask_embed.conv3.{p}", "prompt_encoder.mask_downscaling.6.{p}"),
    *_same("mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight"),
    *(
        (
            f"mask_decoder.transformer.layers.{{i}}.layer_norm{n}.{{p}}",
            f"mask_decoder.transformer.layers.{{i}}.norm{n}.{{p}}",
        )
        for n in (1, 2, 3, 4)
    ),
    ("mask_decoder.transformer.layer_norm_final_attn.{p}", "mask_decoder.transformer.norm_final_attn.{p}"),
    *_same("mask_decoder.transformer.{x}"),
    ("mask_decoder.upscale_conv1.{p}", "mask_decoder.output_upscaling.0.{p}"),
    ("mask_decoder.upscale_layer_norm.{p}", "mask_decoder.output_upscaling.1.{p}"),
    ("mask_decoder.upscale_conv2.{p}", "mask_decoder.output_upscaling.3.{p}"),
    *(
        (f"mask_decoder.{head}.{theirs}.{{p}}", f"mask_decoder.{head}.layers.{ours}.{{p}}")
        for head in ("output_hypernetworks_mlps.{i}", "iou_prediction_head")
        for theirs, ours in (("proj_in", 0), ("layers.0", 1), ("proj_out", 2))
    ),
]


def _rules(pairs: Iterable[tuple[str, str]], foreign: str = "", ours: str = "") -> tuple[Rule, ...]:
    return tuple(move(foreign + a, ours + b) for a, b in pairs)


def _untied(state: StateDict) -> StateDict:
    """transformers has the random frequencies twice, in memory and in some files."""
    if _POSITIONS not in state and _TIED in state:
        state = {**state, _POSITIONS: state[_TIED]}
    return {k: v for k, v in state.items() if k != _TIED}


META_SAM = Layout(
    name="segment_anything",
    about="Meta's segment-anything",
    family="sam",
    has_all=(
        "image_encoder.blocks.0.mlp.lin1.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "mask_decoder.iou_token.weight",
    ),
    rules=(
        *_rules(_META_ENCODER, _ENCODER, _ENCODER),
        *_rules(_same("prompt_encoder.{x}", "mask_decoder.{x}")),
    ),
)
META_SAM_ENCODER = Layout(
    name="segment_anything_encoder",
    about="Meta's segment-anything, the image encoder",
    family="vit",
    has_all=("blocks.0.mlp.lin1.weight", "blocks.0.attn.rel_pos_h", "patch_embed.proj.weight"),
    rules=_rules(_META_ENCODER),
)
TRANSFORMERS_SAM = Layout(
    name="transformers_sam",
    about="transformers' SamModel",
    family="sam",
    has_all=("vision_encoder.layers.0.mlp.lin1.weight", "mask_decoder.iou_token.weight"),
    has_any=(_POSITIONS, _TIED),
    rules=(*_rules(_HF_ENCODER, "vision_encoder.", _ENCODER), *_rules(_HF_REST)),
    prepare=_untied,
    complete=lambda state, _facts: {_TIED: state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]},
)
TRANSFORMERS_SAM_ENCODER = Layout(
    name="transformers_sam_encoder",
    about="transformers' SamModel, the image encoder",
    family="vit",
    has_all=("vision_encoder.layers.0.mlp.lin1.weight", "vision_encoder.layers.0.attn.rel_pos_h"),
    rules=_rules(_HF_ENCODER, "vision_encoder."),
    ignore=tuple((part + "{x}", _REST) for part in ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.")),
)
SAM_LAYOUTS = (META_SAM, META_SAM_ENCODER, TRANSFORMERS_SAM, TRANSFORMERS_SAM_ENCODER)
