"""microsoft/Swin-Transformer, v1 and v2.

Its stages end with the patch merging that timm puts at the start of the next stage; its masks and indices are saved.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from visionzoo.weights.adapters.layout import BUFFER, MASK_TOKEN, Layout
from visionzoo.weights.adapters.rules import Facts, StateDict, move
from visionzoo.weights.adapters.vit_common import PATCH_EMBED, relative_index, same

_BLOCK = "layers.{i}.blocks.{j}."

SWIN_BLOCK = same(
    *(
        _BLOCK + name
        for name in ("norm1.{p}", "attn.qkv.{p}", "attn.proj.{p}", "norm2.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}")
    ),
    _BLOCK + "attn.relative_position_bias_table",
    *(_BLOCK + f"attn.{name}" for name in ("q_bias", "v_bias", "logit_scale", "cpb_mlp.{k}.{p}")),
)


def window_of(table: Tensor) -> int:
    """The side of the square window that a ((2w - 1)^2, heads) table belongs to."""
    w = (math.isqrt(table.shape[0]) + 1) // 2
    if (2 * w - 1) ** 2 != table.shape[0]:
        raise ValueError(f"a relative-position table of {table.shape[0]} rows is not that of a square window")
    return w


def shift_mask(grid: tuple[int, int], window: int) -> Tensor:
    """(windows, w * w, w * w) of 0, and -100 for pairs that only the cyclic shift brought together (Swin, 3.2)."""
    shift = window // 2
    rows, columns = (torch.bucketize(torch.arange(n), torch.tensor([n - window, n - shift]), right=True) for n in grid)
    region = rows[:, None] * 3 + columns
    h, w = grid
    region = region.reshape(h // window, window, w // window, window).transpose(1, 2).reshape(-1, window * window)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)


def _buffers(timm: StateDict, facts: Facts) -> StateDict:
    """Index buffers of v1, and its masks when the image size is known. v2's tables need more than the weights say.

    Microsoft's own loader computes all of them anew.
    """
    result: StateDict = {}
    patch = timm["patch_embed.proj.weight"].shape[-1]
    for key, table in timm.items():
        found = re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table", key)
        if found is None:
            continue
        window = window_of(table)
        result[key.replace("bias_table", "index")] = relative_index(window)
        if facts.image_size is not None and int(found[2]) % 2:
            grid = (facts.image_size[0] // patch >> int(found[1]), facts.image_size[1] // patch >> int(found[1]))
            if min(grid) > window and not (grid[0] % window or grid[1] % window):
                result[key.replace("attn.relative_position_bias_table", "attn_mask")] = shift_mask(grid, window)
    return result


SWIN = Layout(
    name="swin",
    about="microsoft/Swin-Transformer",
    family="swin",
    has_all=("patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight", "layers.0.downsample.reduction.weight"),
    rules=(
        *same(PATCH_EMBED, "patch_embed.norm.{p}", "norm.{p}"),
        *SWIN_BLOCK,
        move("layers.{i}.downsample.{x}", "layers.{i+1}.downsample.{x}"),
        move("head.{p}", "head.fc.{p}"),
    ),
    ignore=(
        ("{x}.relative_position_index", BUFFER),
        ("{x}.relative_coords_table", BUFFER),
        ("{x}.attn_mask", BUFFER),
        ("mask_token", MASK_TOKEN),
    ),
    complete=_buffers,
)
