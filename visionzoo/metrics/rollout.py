"""Attention rollout: what each token has seen of each patch, through all blocks (arXiv 2005.00928).

Legend: B batch, H heads, P prefix tokens, (h, w) token grid, T = P + h * w, n windows per image, S tokens of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visionzoo.layers.window import WindowLayout


def whole_image_attention(weights: Tensor, layout: WindowLayout) -> Tensor:
    """Attention within windows as a map of the whole image: (B, n, H, S, S) -> (B, h * w, h * w), heads averaged.

    Tokens of different windows do not see each other. What goes to padding is given back to the others, so that rows
    sum to one.
    """
    (h, w), (hp, wp) = layout.grid, layout.padded
    weights = weights.mean(dim=2)
    places = torch.arange(hp * wp, device=weights.device) if layout.order is None else layout.order
    places = places.view(layout.num_windows, -1)
    rows, cols = places // wp, places % wp
    token = rows * w + cols
    real = (rows < h) & (cols < w)
    pair = real.unsqueeze(2) & real.unsqueeze(1)
    index = (token.unsqueeze(2) * (h * w) + token.unsqueeze(1))[pair]
    whole = weights.new_zeros(weights.shape[0], h * w * h * w)
    whole[:, index] = weights[:, pair]
    whole = whole.view(-1, h * w, h * w)
    return whole / whole.sum(dim=-1, keepdim=True)


def _merge(seen: Tensor, grid: tuple[int, int]) -> Tensor:
    """2 x 2 tokens of a (h, w) grid become one, which has seen what they have: (B, h * w, M) -> (B, h' * w', M)."""
    h, w = grid
    cells = torch.arange(h * w, device=seen.device)
    target = (cells // w // 2) * ((w + 1) // 2) + cells % w // 2
    total = seen.new_zeros(seen.shape[0], ((h + 1) // 2) * ((w + 1) // 2), seen.shape[2]).index_add(1, target, seen)
    return total / torch.bincount(target).view(1, -1, 1)


def attention_rollout(
    maps: Sequence[Tensor], grid_size: tuple[int, int], *, prefix_tokens: int = 0, query: int | None = None
) -> Tensor:
    """Follow attention back from the output to the patches: (B, h, w) shares, each image's sum to one.

    Each block passes on half of what a token had (the residual) and half of what it attends to, heads averaged
    (equation 1 of the paper); the product over all blocks says what each token has seen.

    Args:
        maps: attention weights of each block, first block first: (B, H, T, T) or, heads averaged, (B, T, T). Where the
            number of tokens shrinks between two blocks, 2 x 2 tokens were merged to one (Swin).
        grid_size: (h, w) of the first block.
        prefix_tokens: P, before the patches.
        query: the token whose view is asked for, as 0 for the class token; None for the mean over all patches.

    Raises:
        ValueError: for no maps, or maps of another grid.
    """
    if not maps:
        raise ValueError("attention_rollout needs the maps of at least one block; got none")
    h, w = grid_size
    tokens = prefix_tokens + h * w
    seen = torch.eye(tokens, device=maps[0].device).expand(maps[0].shape[0], -1, -1)
    for i, weights in enumerate(maps):
        weights = (weights.mean(dim=1) if weights.ndim == 4 else weights).float()
        if weights.shape[-1] < seen.shape[1] and prefix_tokens == 0:
            seen = _merge(seen, (h, w))
            h, w = (h + 1) // 2, (w + 1) // 2
        if weights.shape[-1] != seen.shape[1]:
            raise ValueError(
                f"map {i} is of {weights.shape[-1]} tokens, a grid of {h}x{w} with {prefix_tokens} prefix tokens has "
                f"{seen.shape[1]}; give grid_size and prefix_tokens of the model"
            )
        weights = weights / weights.sum(dim=-1, keepdim=True)
        seen = 0.5 * (seen + weights @ seen)
    asked = seen[:, prefix_tokens:].mean(dim=1) if query is None else seen[:, query]
    patches = asked[:, prefix_tokens:]
    return (patches / patches.sum(dim=-1, keepdim=True)).view(-1, *grid_size)
