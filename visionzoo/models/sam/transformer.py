"""SAM's two-way Transformer (arXiv 2304.02643, appendix A): prompt tokens and image cells attend to each other.

Images and prompts differ in number by a thousand, which three exact rearrangements use:

- ``q · (k W)`` is ``(W q) · k``: a few tokens are projected instead of all cells, as long as heads x tokens is less
  than the width of the projection. A bias of the keys adds the same to all logits of a query, and is left out.
- ``(a v) W`` is ``a (v W)`` likewise, for values.
- what the first layer projects of an image is the same for all its prompts, and is computed once (:class:`Cells`).

The first two read weights past their layers, and only where these are plain.

Legend: N prompts, B images, T tokens, S = h * w cells, C width, H heads, d head width, D = H * d.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.fast_path import is_plain


def is_exported() -> bool:
    """Whether a graph is being written, for any number of prompts and points: choices by their number have no place."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


class Cells(NamedTuple):
    """An image's cells, and what the first layer makes of them for all prompts. B is 1, or N: one for each prompt."""

    keys: Tensor  #: (B, S, C)
    position: Tensor  #: (1, S, C)
    placed: Tensor  #: (B, S, C), with positions added
    projected: tuple[Tensor, Tensor, Tensor] | None  #: (1, H, S, d) keys, values and queries; None where B is not 1


class MLPBlock(nn.Module):
    """Two layers with a ReLU between: (..., C) -> (..., C). Meta's names."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.lin2(F.relu(self.lin1(x)))


class SamAttention(nn.Module):
    """Attention in a narrower space, Meta's ``Attention``: queries, keys, values (.., C) -> D -> (.., C).

    Args:
        dim: C.
        num_heads: H.
        downsample: C / D.
    """

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.inner_dim = dim // downsample
        if dim % downsample or self.inner_dim % num_heads:
            raise ValueError(f"a width of {dim} does not divide by {downsample} and {num_heads} heads")
        self.head_dim = self.inner_dim // num_heads
        self.q_proj = nn.Linear(dim, self.inner_dim)
        self.k_proj = nn.Linear(dim, self.inner_dim)
        self.v_proj = nn.Linear(dim, self.inner_dim)
        self.out_proj = nn.Linear(self.inner_dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, H, T, d)."""
        b, t, _ = x.shape  # ONNX's exporter knows no unflatten
        return x.reshape(b, t, self.num_heads, self.head_dim).transpose(1, 2)

    def among_tokens(self, q: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """Tokens attend to tokens: (N, T, C) queries and keys, (N, T, C) values -> (N, T, C).

        Args:
            valid: (N, T) bool; keys that are False are not seen.
        """
        mask = None if valid is None else valid[:, None, None, :]
        if mask is not None and is_exported():  # ONNX Runtime's attention wants every row of the mask
            mask = mask.expand(-1, -1, q.shape[1], -1)
        parts = (self.split(self.q_proj(q)), self.split(self.k_proj(q)), self.split(self.v_proj(v)))
        out = F.scaled_dot_product_attention(*parts, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def tokens_to_cells(self, q: Tensor, cells: Cells) -> Tensor:
        """Tokens attend to cells: (N, T, C) -> (N, T, C)."""
        n, t, _ = q.shape
        query = self.split(self.q_proj(q))
        if cells.projected is not None:
            k, v, _ = cells.projected
            # One image for all: its cells are read once, by the tokens of all prompts.
            query = query.transpose(0, 1).reshape(1, self.num_heads, n * t, self.head_dim)
            out = F.scaled_dot_product_attention(query, k, v)
            out = out.view(self.num_heads, n, t, self.head_dim).permute(1, 2, 0, 3).flatten(2)
        elif not self._folds(t):
            k, v = self.split(self.k_proj(cells.placed)), self.split(self.v_proj(cells.keys))
            out = F.scaled_dot_product_attention(query, k, v).transpose(1, 2).flatten(2)
        else:
            folded = query * self.head_dim**-0.5 @ self.k_proj.weight.unflatten(0, (self.num_heads, self.head_dim))
            weights = (folded.flatten(1, 2) @ cells.placed.transpose(-2, -1)).softmax(dim=-1)
            means = (weights @ cells.keys).unflatten(1, (self.num_heads, t))
            out = means @ self.v_proj.weight.unflatten(0, (self.num_heads, self.head_dim)).transpose(-2, -1)
            out = out.transpose(1, 2).flatten(2) + self.v_proj.bias
            if torch.is_grad_enabled():  # the keys' bias has a gradient of zero, but distributed training wants one
                out = out + 0 * self.k_proj.bias.sum()
        return self.out_proj(out)

    def cells_to_tokens(self, cells: Cells, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """Cells attend to tokens, and add what they find: (N, T, C) keys and values -> (N, S, C).

        Args:
            valid: (N, T) bool; tokens that are False are not seen.
        """
        n, t, _ = k.shape
        key, value = self.split(self.k_proj(k)) * self.head_dim**-0.5, self.split(self.v_proj(v))
        heads = (self.num_heads, self.head_dim)
        if cells.projected is not None:
            logits = key @ cells.projected[2].transpose(-2, -1)
        elif not self._folds(t):
            logits = key @ self.split(self.q_proj(cells.placed)).transpose(-2, -1)
        else:
            folded = (key @ self.q_proj.weight.unflatten(0, heads)).flatten(1, 2)
            bias = key @ self.q_proj.bias.view(*heads, 1)
            logits = (folded @ cells.placed.transpose(-2, -1)).view(n, self.num_heads, t, -1) + bias
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None, :, None], -torch.inf)
        # (N, H, T, S): softmax runs over T, the cells lie side by side in memory.
        weights = logits.softmax(dim=2)
        if not self._folds(t):
            found = (weights.transpose(-2, -1) @ value).transpose(1, 2).flatten(2)
            return cells.keys + self.out_proj(found)
        # Each head's weights sum to one, so that every head brings its share of the bias.
        share = self.out_proj.bias / self.num_heads
        answer = value @ self.out_proj.weight.unflatten(1, heads).permute(1, 2, 0) + share
        keys = cells.keys.expand(n, -1, -1)
        return torch.baddbmm(keys, weights.flatten(1, 2).transpose(-2, -1), answer.flatten(1, 2))

    def _folds(self, tokens: int) -> bool:
        layers = (self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        if is_exported():
            return False
        return self.num_heads * tokens < self.inner_dim and all(is_plain(layer, nn.Linear) for layer in layers)


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to image, MLP, image to tokens; a norm after each (figure 14).

    Args:
        dim: C.
        num_heads: H.
        mlp_dim: hidden width of the MLP.
        first: tokens have their positions in them already, and nothing to add to.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = SamAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = SamAttention(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = SamAttention(dim, num_heads, downsample=2)

    def project(self, keys: Tensor, position: Tensor) -> Cells:
        """An image's cells (1, S, C), and what this block, as the first, makes of them."""
        placed = keys + position
        to, back = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        projected = (to.split(to.k_proj(placed)), to.split(to.v_proj(keys)), back.split(back.q_proj(placed)))
        return Cells(keys, position, placed, projected)

    def forward(self, tokens: Tensor, cells: Cells, origin: Tensor, valid: Tensor | None) -> tuple[Tensor, Cells]:
        """
        Args:
            tokens: (N, T, C).
            cells: of one image, or of one for each prompt.
            origin: (N, T, C), the tokens at the start, which are added to queries and keys as positions.
            valid: (N, T) bool, False for padding.
        """
        if self.first:
            tokens = self.norm1(self.self_attn.among_tokens(tokens, tokens, valid))
        else:
            tokens = self.norm1(tokens + self.self_attn.among_tokens(tokens + origin, tokens, valid))
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.tokens_to_cells(tokens + origin, cells))
        tokens = self.norm3(tokens + self.mlp(tokens))
        keys = self.cross_attn_image_to_token.cells_to_tokens(cells, tokens + origin, tokens, valid)
        keys = self.norm4(keys)
        return tokens, Cells(keys, cells.position, keys + cells.position, None)


class TwoWayTransformer(nn.Module):
    """Blocks of the two-way kind, and a last look of the tokens at the image.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: H.
        mlp_dim: hidden width of their MLPs.
    """

    def __init__(self, dim: int, depth: int = 2, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = SamAttention(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def cells(self, source: Tensor, position: Tensor) -> Cells:
        """Embeddings of one image, or one for each prompt, ready for :meth:`forward`.

        Args:
            source: (B, S, C), masks added.
            position: (1, S, C).
        """
        if not is_exported() and source.shape[0] == 1:
            first = self.layers[0]
            assert isinstance(first, TwoWayBlock)
            return first.project(source, position)
        return Cells(source, position, source + position, None)

    def forward(self, tokens: Tensor, cells: Cells, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, C) and cells -> the tokens (N, T, C) and the cells (N, S, C) after all blocks."""
        origin = tokens
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, origin, valid)
        tokens = tokens + self.final_attn_token_to_image.tokens_to_cells(tokens + origin, cells)
        return self.norm_final_attn(tokens), cells.keys
