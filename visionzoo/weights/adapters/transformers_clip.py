"""Hugging Face transformers: CLIPModel and SiglipModel. Their names are the same in files and in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from visionzoo.weights.adapters.clip import in_trunk
from visionzoo.weights.adapters.layout import BUFFER, Layout
from visionzoo.weights.adapters.rules import Facts, Rule, Tensors, join, move

_CLASS = "vision_model.embeddings.class_embedding"
_LAYER = "encoder.layers.{i}."


def _block(part: str, block: str, joined: str, names: dict[str, str]) -> tuple[Rule, ...]:
    """A Transformer block of ``part``; ``joined`` is what we call queries, keys and values."""
    layer = part + _LAYER
    return (
        join((f"{layer}self_attn.{n}_proj.{{p}}" for n in "qkv"), block + joined),
        *(move(f"{layer}{theirs}.{{p}}", f"{block}{ours}.{{p}}") for theirs, ours in names.items()),
    )


_TEXT_NAMES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_IMAGE_NAMES = {
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT = (
    move("text_model.embeddings.token_embedding.weight", "text.token_embedding.weight"),
    move("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
    *_block("text_model.", "text.transformer.resblocks.{i}.", "attn.in_proj_{p}", _TEXT_NAMES),
    move("text_model.final_layer_norm.{p}", "text.ln_final.{p}"),
)
_IMAGE = (
    move("vision_model.embeddings.patch_embedding.{p}", "patch_embed.proj.{p}"),
    move("vision_model.embeddings.position_embedding.weight", "pos_embed", lambda t: t[None], lambda t: t[0]),
    *_block("vision_model.", "blocks.{i}.", "attn.qkv.{p}", _IMAGE_NAMES),
    move("vision_model.post_layernorm.{p}", "norm.{p}"),
)
_IGNORE = (("text_model.embeddings.position_ids", BUFFER), ("vision_model.embeddings.position_ids", BUFFER))


def _split_query(tensors: Tensors) -> Tensors:
    width = tensors[0].shape[0] // 3
    return [tensors[0][:width], tensors[0][width:]]


def _join_query(tensors: Tensors, facts: Facts) -> Tensors:
    del facts
    return [torch.cat(tensors)]


def _scalar(name: str) -> Rule:
    """transformers' SigLIP has a vector of one number where open_clip has the number."""
    scalar: Callable[[Tensor], Tensor] = lambda t: t.reshape(())  # noqa: E731
    return move(name, name, scalar, lambda t: t.reshape(1))


TRANSFORMERS_CLIP = Layout(
    name="transformers_clip",
    about="transformers' CLIPModel",
    family="clip",
    has_all=("text_model.embeddings.token_embedding.weight", _CLASS),
    rules=(
        *_TEXT,
        *in_trunk(
            (
                move(_CLASS, "cls_token", lambda t: t[None, None], lambda t: t[0, 0]),
                move("vision_model.pre_layrnorm.{p}", "norm_pre.{p}"),
                *_IMAGE,
            )
        ),
        move("visual_projection.weight", "visual.head.proj.weight"),
        move("text_projection.weight", "text.text_projection", lambda t: t.T, lambda t: t.T),
        move("logit_scale", "logit_scale"),
    ),
    ignore=_IGNORE,
)

_POOL = "vision_model.head."
TRANSFORMERS_SIGLIP = Layout(
    name="transformers_siglip",
    about="transformers' SiglipModel",
    family="clip",
    has_all=("text_model.embeddings.token_embedding.weight", _POOL + "probe"),
    rules=(
        *_TEXT,
        *in_trunk(
            (
                *_IMAGE,
                move(_POOL + "probe", "attn_pool.latent"),
                Rule(
                    (_POOL + "attention.in_proj_{p}",),
                    ("attn_pool.q.{p}", "attn_pool.kv.{p}"),
                    _split_query,
                    _join_query,
                ),
                move(_POOL + "attention.out_proj.{p}", "attn_pool.proj.{p}"),
                move(_POOL + "layernorm.{p}", "attn_pool.norm.{p}"),
                move(_POOL + "mlp.fc{i}.{p}", "attn_pool.mlp.fc{i}.{p}"),
            )
        ),
        move("text_model.head.{p}", "text.text_projection.{p}"),
        _scalar("logit_scale"),
        _scalar("logit_bias"),
    ),
    ignore=_IGNORE,
)

TRANSFORMERS_CLIP_LAYOUTS = (TRANSFORMERS_CLIP, TRANSFORMERS_SIGLIP)
