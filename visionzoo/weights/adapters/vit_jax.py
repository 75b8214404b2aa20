"""google-research/vision_transformer's ``.npz``: kernels are (in, out); queries, keys, values apart, split by head."""

from __future__ import annotations

import torch
from torch import Tensor

from visionzoo.weights.adapters.layout import Layout
from visionzoo.weights.adapters.rules import Facts, Rule, StateDict, Tensors, move
from visionzoo.weights.adapters.vit_common import with_class_position

_BLOCK = "Transformer/encoderblock_{i}/"
_ATTENTION = _BLOCK + "MultiHeadDotProductAttention_1/"
_PARTS = ("query", "key", "value")


def _transpose(kernel: Tensor) -> Tensor:
    return kernel.T


def _heads(facts: Facts) -> int:
    if facts.num_heads is None:
        raise ValueError("the layout 'vit_jax' splits attention by head: give Facts(num_heads=...)")
    return facts.num_heads


def _join_kernels(tensors: Tensors) -> Tensors:
    """Three (D, heads, D / heads) -> (3 D, D)."""
    return [torch.cat([t.flatten(1).T for t in tensors])]


def _split_kernel(tensors: Tensors, facts: Facts) -> Tensors:
    heads = _heads(facts)
    return [t.T.reshape(t.shape[1], heads, -1) for t in tensors[0].chunk(3)]


def _join_biases(tensors: Tensors) -> Tensors:
    """Three (heads, D / heads) -> (3 D,)."""
    return [torch.cat([t.flatten() for t in tensors])]


def _split_bias(tensors: Tensors, facts: Facts) -> Tensors:
    heads = _heads(facts)
    return [t.reshape(heads, -1) for t in tensors[0].chunk(3)]


def _dense(foreign: str, timm: str) -> tuple[Rule, ...]:
    return move(f"{foreign}/kernel", f"{timm}.weight", _transpose, _transpose), move(f"{foreign}/bias", f"{timm}.bias")


def _norm(foreign: str, timm: str) -> tuple[Rule, ...]:
    return move(f"{foreign}/scale", f"{timm}.weight"), move(f"{foreign}/bias", f"{timm}.bias")


def _drop_unreachable_head(state: StateDict) -> StateDict:
    """Early ImageNet-21k files put a tanh layer before the head; timm has no place for it, and the head needs it."""
    if "pre_logits/kernel" not in state:
        return state
    return {k: v for k, v in state.items() if not k.startswith(("pre_logits/", "head/"))}


VIT_JAX = Layout(
    name="vit_jax",
    about="google-research/vision_transformer (.npz)",
    family="vit",
    has_all=("embedding/kernel", "Transformer/encoderblock_0/LayerNorm_0/scale"),
    rules=(
        move("cls", "cls_token"),
        move("Transformer/posembed_input/pos_embedding", "pos_embed"),
        # (height, width, in, out) -> (out, in, height, width)
        move(
            "embedding/kernel",
            "patch_embed.proj.weight",
            lambda t: t.permute(3, 2, 0, 1),
            lambda t: t.permute(2, 3, 1, 0),
        ),
        move("embedding/bias", "patch_embed.proj.bias"),
        *_norm(_BLOCK + "LayerNorm_0", "blocks.{i}.norm1"),
        Rule(
            tuple(f"{_ATTENTION}{n}/kernel" for n in _PARTS),
            ("blocks.{i}.attn.qkv.weight",),
            _join_kernels,
            _split_kernel,
        ),
        Rule(tuple(f"{_ATTENTION}{n}/bias" for n in _PARTS), ("blocks.{i}.attn.qkv.bias",), _join_biases, _split_bias),
        Rule(
            (_ATTENTION + "out/kernel",),
            ("blocks.{i}.attn.proj.weight",),
            lambda t: [t[0].flatten(0, 1).T],
            lambda t, facts: [t[0].T.reshape(_heads(facts), -1, t[0].shape[0])],
        ),
        move(_ATTENTION + "out/bias", "blocks.{i}.attn.proj.bias"),
        *_norm(_BLOCK + "LayerNorm_2", "blocks.{i}.norm2"),
        *_dense(_BLOCK + "MlpBlock_3/Dense_0", "blocks.{i}.mlp.fc1"),
        *_dense(_BLOCK + "MlpBlock_3/Dense_1", "blocks.{i}.mlp.fc2"),
        *_norm("Transformer/encoder_norm", "norm"),
        *_dense("head", "head"),
    ),
    prepare=_drop_unreachable_head,
    refine=with_class_position,
)
