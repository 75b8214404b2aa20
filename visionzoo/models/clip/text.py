"""The text tower of CLIP (arXiv 2103.00020, section 2.4) and SigLIP (arXiv 2303.15343), under open_clip's names.

Legend: B batch, L context length, N tokens that are computed, D width, H heads, d head width, E embedding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from visionzoo.layers.fast_path import is_plain, is_recorded
from visionzoo.layers.linear import apply_linear, linear
from visionzoo.layers.mlp import ACTIVATIONS, linear_act
from visionzoo.models.clip.config import TextConfig
from visionzoo.types import to_device


class TextAttention(nn.Module):
    """Self-attention under the names of ``nn.MultiheadAttention``: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def _project(self, x: Tensor, first: int, parts: int) -> tuple[Tensor, ...]:
        """``parts`` of queries, keys and values from the ``first`` on, each (B, H, N, d)."""
        b, n, dim = x.shape
        rows = slice(first * dim, (first + parts) * dim)
        out = linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return out.view(b, n, parts, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(T, L, D) -> the same; ``causal``: a token sees those before it."""
        q, k, v = self._project(x, 0, 3)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return apply_linear(self.out_proj, out.transpose(1, 2).flatten(2))

    def forward_token(self, x: Tensor, at: Tensor, causal: bool) -> Tensor:
        """What :meth:`forward` gives for one token of each sequence: (B, N, D) and (B,) int64 -> (B, 1, D)."""
        (q,) = self._project(gather_token(x, at), 0, 1)
        k, v = self._project(x, 1, 2)
        mask = (torch.arange(x.shape[1], device=x.device) <= at[:, None])[:, None, None] if causal else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return apply_linear(self.out_proj, out.transpose(1, 2).flatten(2))


class TextMlp(nn.Module):
    """Two linear layers with an activation between them: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden_dim: int, act: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(dim, hidden_dim)
        self.act = ACTIVATIONS[act]()
        self.c_proj = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(T, L, D) -> the same."""
        return apply_linear(self.c_proj, linear_act(x, self.c_fc, self.act))


class TextBlock(nn.Module):
    """Pre-norm Transformer block: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.causal = config.causal
        self.ln_1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = TextAttention(config.width, config.heads)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = TextMlp(config.width, int(config.width * config.mlp_ratio), config.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(T, L, D) -> the same."""
        x = x + self.attn(self.ln_1(x), self.causal)
        return x + self.mlp(self.ln_2(x))

    def is_plain(self) -> bool:
        """Whether nobody has put anything around this block or its attention, so that part of it will do."""
        return is_plain(self, TextBlock) and is_plain(self.attn, TextAttention)

    def forward_token(self, x: Tensor, at: Tensor) -> Tensor:
        """The same for one token of each sequence: (B, N, D) and (B,) int64 -> (B, 1, D)."""
        y = gather_token(x, at) + self.attn.forward_token(self.ln_1(x), at, self.causal)
        return y + self.mlp(self.ln_2(y))


def gather_token(x: Tensor, at: Tensor) -> Tensor:
    """One token of each sequence: (B, N, D) and (B,) int64 -> (B, 1, D)."""
    return x[torch.arange(x.shape[0], device=x.device), at].unsqueeze(1)


class TextTransformer(nn.Module):
    """The blocks, under the name that open_clip has for them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(config) for _ in range(config.layers))


class TextTower(nn.Module):
    """Token ids to embeddings: (B, L) int64 -> (B, E).

    Two things are never computed, since nothing reads them: in a causal tower what follows the last end token of the
    batch, and after the last attention every token but the one that is pooled. The numbers are the same.

    Args:
        config: the flavour.
        embed_dim: E.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = TextTransformer(config)
        self.ln_final = nn.LayerNorm(config.width, eps=config.eps)
        self.text_projection: nn.Parameter | nn.Linear
        if config.projection_bias:
            self.text_projection = nn.Linear(config.width, embed_dim)
        else:
            self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))
        self._init_weights()

    def _init_weights(self) -> None:
        """CLIP's initial values: outputs of the residual branches shrink with the depth."""
        width, layers = self.config.width, self.config.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(width * 2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(width * 2 * layers) ** -0.5)
            for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                nn.init.zeros_(layer.bias)
        projection = self.text_projection
        if isinstance(projection, nn.Linear):
            nn.init.zeros_(projection.bias)
        nn.init.normal_(projection.weight if isinstance(projection, nn.Linear) else projection, std=width**-0.5)

    @property
    def blocks(self) -> list[TextBlock]:
        """The blocks, first to last."""
        return cast(list[TextBlock], list(self.transformer.resblocks))

    def lock(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze this tower but for its last layers, with open_clip's arguments and its order.

        Args:
            unlocked_layers: how many go on learning, from the end: the projection, the last block with the final norm,
                each block before it, the embeddings.
            freeze_layer_norm: must be true: norms are frozen with the layers that they are in.

        Raises:
            ValueError: for fewer layers than none, or norms that are to learn by themselves.
        """
        if unlocked_layers < 0 or not freeze_layer_norm:
            raise ValueError(
                f"unlocked_layers={unlocked_layers} must be at least 0, and freeze_layer_norm={freeze_layer_norm} true"
            )
        *blocks, last = self.blocks
        layers: list[list[Any]] = [
            [self.token_embedding, self.positional_embedding],
            *[[block] for block in blocks],
            [last, self.ln_final],
            [self.text_projection],
        ]
        self.requires_grad_(False)
        for layer in layers[max(0, len(layers) - unlocked_layers) :]:
            for part in layer:
                part.requires_grad_(True)

    def forward(self, ids: Tensor) -> Tensor:
        """
        Args:
            ids: (B, L) int64; a causal tower also takes fewer than L columns. On the CPU, as the tokenizer gives them,
                the model need not wait for its device to see how long they are.

        Raises:
            ValueError: for another shape or type, more columns than the context, or fewer where padding counts.
        """
        self._check(ids)
        at = self.pooled_place(ids)
        if self.config.causal and ids.numel() and not is_recorded():
            # A graph keeps one length: asking the data would break a compiled one in two, and fix a traced one.
            ids = ids[:, : max(at.tolist()) + 1]
        device = self.positional_embedding.device
        ids, at = to_device(ids, device), to_device(at, device)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        *blocks, last = self.blocks
        for block in blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        one = last.forward_token(x, at) if last.is_plain() else gather_token(last(x), at)
        x = self.ln_final(one[:, 0])
        projection = self.text_projection
        return projection(x) if isinstance(projection, nn.Module) else x @ projection

    def pooled_place(self, ids: Tensor) -> Tensor:
        """Where the token stands that is read: (B,) int64."""
        config = self.config
        if config.pool == "last":
            return ids.new_full((ids.shape[0],), ids.shape[1] - 1)
        if config.pool == "argmax":
            return ids.argmax(dim=-1)
        ends = ids.eq(config.end_id or 0)
        if not is_recorded() and not all(ends.any(dim=-1).tolist()):
            raise ValueError(f"a text has no end token (id {config.end_id}); use the tokenizer this model belongs to")
        return ends.int().argmax(dim=-1)

    def _check(self, ids: Tensor) -> None:
        length = self.config.context_length
        if ids.ndim != 2 or ids.is_floating_point() or not 1 <= ids.shape[1] <= length:
            raise ValueError(
                f"text is token ids (B, {length}), as model.tokenizer gives them, not {tuple(ids.shape)} {ids.dtype}"
            )
        if not self.config.causal and ids.shape[1] != length:
            raise ValueError(
                f"this text tower attends to its padding: ids must be (B, {length}), not {tuple(ids.shape)}"
            )
