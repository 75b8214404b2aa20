"""What the ViT layouts share: timm's own key patterns, and tables that several of them compute."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visionzoo.weights.adapters.rules import Facts, Rule, StateDict, Tensors, move

PATCH_EMBED = "patch_embed.proj.{p}"


def same(*patterns: str) -> tuple[Rule, ...]:
    """Tensors that have the same name on both sides."""
    return tuple(move(p, p) for p in patterns)


#: A plain ViT, as timm, DeiT, MAE and DINO name it.
PLAIN_VIT = same(
    "cls_token",
    "pos_embed",
    PATCH_EMBED,
    "blocks.{i}.norm1.{p}",
    "blocks.{i}.attn.qkv.{p}",
    "blocks.{i}.attn.proj.{p}",
    "blocks.{i}.norm2.{p}",
    "blocks.{i}.mlp.fc1.{p}",
    "blocks.{i}.mlp.fc2.{p}",
    "norm.{p}",
    "fc_norm.{p}",
    "head.{p}",
)


def with_class_position(timm: StateDict, facts: Facts) -> StateDict:
    """Give ``pos_embed`` an entry of zeros for the class token where the model has none: the sum is the same."""
    if facts.prefix_positions == 0 and "cls_token" in timm and "pos_embed" in timm:
        table = timm["pos_embed"]
        return {**timm, "pos_embed": torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)}
    return timm


def _fold(tensors: Tensors) -> Tensors:
    registers, cls, table = tensors
    return [registers, cls + table[:, :1], table[:, 1:]]


def registers_after_positions(registers: str, cls: str, table: str) -> Rule:
    """DINOv2 adds positions before it inserts registers; timm stores the class token with its position added.

    On the way back the class token keeps the sum and its position is zero, which gives the same network.
    """

    def unfold(tensors: Tensors, facts: Facts) -> Tensors:
        if facts.prefix_positions:
            raise ValueError("pos_embed has entries for the registers, which DINOv2 does not have")
        return [tensors[0], tensors[1], torch.cat((torch.zeros_like(tensors[2][:, :1]), tensors[2]), dim=1)]

    return Rule((registers, cls, table), ("reg_token", "cls_token", "pos_embed"), _fold, unfold)


def is_gated(tensors: Tensors) -> bool:
    """Whether ``fc1.weight, fc2.weight, ...`` are a SwiGLU whose gate and value are packed into ``fc1``."""
    return tensors[0].shape[0] == 2 * tensors[1].shape[1]


def gated(w12: str, w3: str) -> Rule:
    """A SwiGLU MLP with packed gate and value: ``w12``, ``w3`` of DINOv2, ``fc1``, ``fc2`` of timm."""
    return Rule(
        tuple(f"{w}.{p}" for p in ("weight", "bias") for w in (w12, w3)),
        tuple(f"blocks.{{i}}.mlp.{w}.{p}" for p in ("weight", "bias") for w in ("fc1", "fc2")),
        list,
        lambda t, _facts: list(t),
        is_gated,
    )


def table_for_each_block(state: StateDict, shared: str, own: str, blocks: str) -> StateDict:
    """Copy BEiT's shared relative-position table, as pretraining stores it, to each block, as fine-tuning does.

    Args:
        state: foreign keys.
        shared: the key of the shared table.
        own: the key of a block's own table, with ``{}`` for its number.
        blocks: what keys of a block start with, before its number.
    """
    if shared not in state:
        return state
    count = 1 + max(int(k[len(blocks) :].split(".")[0]) for k in state if k.startswith(blocks))
    table = state[shared]
    return {k: v for k, v in state.items() if k != shared} | {own.format(i): table for i in range(count)}


def beit_position_index(table: Tensor) -> Tensor:
    """(rows, heads) table -> (N + 1, N + 1) int64: the row that token i uses for token j, class token first (BEiT).

    The last three rows are for class to patch, patch to class and class to itself. The window is taken to be square.
    """
    w = (math.isqrt(table.shape[0] - 3) + 1) // 2
    if (2 * w - 1) ** 2 + 3 != table.shape[0]:
        raise ValueError(f"a relative-position table of {table.shape[0]} rows is not that of a square window")
    index = torch.empty(w * w + 1, w * w + 1, dtype=torch.int64)
    index[1:, 1:] = relative_index(w)
    rows = table.shape[0]
    index[0, :], index[:, 0], index[0, 0] = rows - 3, rows - 2, rows - 1
    return index


def relative_index(w: int) -> Tensor:
    """(w * w, w * w) int64: row of the (2w - 1)^2 table for each pair of tokens in a square window (Swin)."""
    y, x = torch.arange(w).repeat_interleave(w), torch.arange(w).repeat(w)
    return (y[:, None] - y + w - 1) * (2 * w - 1) + x[:, None] - x + w - 1
