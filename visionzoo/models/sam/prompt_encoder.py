"""SAM's prompt encoder (arXiv 2304.02643, section 3 and appendix A): prompts to tokens, and masks to a map.

Legend: N prompts, P points, C width, (H, W) pixels of the model's input, (h, w) embedding grid, T text width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.backbones.vitdet import LayerNorm2d
from visionzoo.models.sam.prompts import BOTTOM_RIGHT, IGNORED, Prompts, may_look
from visionzoo.models.sam.transformer import is_exported

#: Channels of the mask path before the last layer.
MASK_CHANNELS = 16


class PromptTokens(NamedTuple):
    """Prompts as the decoder reads them."""

    sparse: Tensor  #: (N, P, C), one token for each point, corner and text
    valid: Tensor | None  #: (N, P) bool, False for padding; None where there is none
    dense: Tensor  #: (N, C, h, w), or (1, C, h, w) where no prompt has a mask


class PositionEmbeddingRandom(nn.Module):
    """Places as sines and cosines of random frequencies (arXiv 2006.10739): (..., 2) in 0..1 -> (..., C)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def sharpen(self, factor: float) -> None:
        """Raise all frequencies in place, so that places are told apart that are so much nearer.

        Raises:
            ValueError: unless the factor is positive and finite.
        """
        if not 0 < factor < math.inf:
            raise ValueError(f"position_scale={factor} must be a positive number; 1 changes nothing")
        self.positional_encoding_gaussian_matrix.mul_(factor)

    def forward(self, places: Tensor) -> Tensor:
        """Places (..., 2) as (x, y) in [0, 1] -> (..., D) sines and cosines, float32."""
        # In float32 whatever surrounds it: an angle of several turns has no meaning in bfloat16.
        with torch.autocast(places.device.type, enabled=False):
            angles = 2 * math.pi * ((2 * places.float() - 1) @ self.positional_encoding_gaussian_matrix.float())
            return torch.cat((angles.sin(), angles.cos()), dim=-1)

    def _pe_encoding(self, places: Tensor) -> Tensor:
        """Meta's name of :meth:`forward`, which their ONNX export calls."""
        return self(places)


class PromptEncoder(nn.Module):
    """Prompts in, tokens and a map out. Parameters are Meta's, and so is :meth:`forward`.

    Args:
        embed_dim: C.
        image_embedding_size: (h, w).
        input_image_size: (H, W).
        text_dim: T; None for a model without text prompts, which is Meta's.
    """

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: tuple[int, int],
        input_image_size: tuple[int, int],
        *,
        text_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.image_embedding_size = image_embedding_size
        self.input_image_size = input_image_size
        self.mask_input_size = (4 * image_embedding_size[0], 4 * image_embedding_size[1])
        self.text_dim: int | None = None
        self.pe_layer = PositionEmbeddingRandom(embed_dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(BOTTOM_RIGHT + 1))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        small = MASK_CHANNELS // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, small, kernel_size=2, stride=2),
            LayerNorm2d(small, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(small, MASK_CHANNELS, kernel_size=2, stride=2),
            LayerNorm2d(MASK_CHANNELS, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        if text_dim is not None:
            self.add_text(text_dim)

    def add_text(self, text_dim: int) -> None:
        """Take text prompts of width T as well, through a new projection."""
        self.text_dim = text_dim
        self.text_projection = nn.Linear(text_dim, self.embed_dim)
        # A text embedding has length one. Its token begins as large as those of points, or nobody would hear it.
        nn.init.normal_(self.text_projection.weight)
        nn.init.zeros_(self.text_projection.bias)

    @property
    def num_point_embeddings(self) -> int:
        """Kinds of points: negative, positive, and the two corners of a box."""
        return len(self.point_embeddings)

    def get_dense_pe(self) -> Tensor:
        """The positions of the grid's cells, as points there would have them: (1, C, h, w)."""
        h, w = self.image_embedding_size
        device = self.pe_layer.positional_encoding_gaussian_matrix.device
        rows = (torch.arange(h, device=device) + 0.5) / h
        cols = (torch.arange(w, device=device) + 0.5) / w
        grid = torch.stack((cols.expand(h, w), rows[:, None].expand(h, w)), dim=-1)
        return self.pe_layer(grid).permute(2, 0, 1).unsqueeze(0)

    def encode(self, prompts: Prompts) -> PromptTokens:
        """Prompts of any mix to tokens and a map.

        Raises:
            ValueError: for masks of another size than this model's, or texts that it cannot take.
        """
        sparse = self._embed_points(prompts.points, prompts.labels)
        valid = None
        if _may_be_ignored(prompts.labels):
            valid = prompts.labels != IGNORED
        if prompts.text is not None:
            token = self._embed_text(prompts.text)
            if valid is None and prompts.has_text is not None:
                valid = torch.ones_like(prompts.labels, dtype=torch.bool)
            if valid is not None:
                has = prompts.has_text
                has = valid.new_ones(len(valid)) if has is None else has
                valid = torch.cat((valid, has[:, None]), dim=1)
            sparse = torch.cat((sparse, token), dim=1)
        return PromptTokens(sparse, valid, self._embed_masks(prompts.masks, prompts.has_mask))

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Meta's own signature.

        Args:
            points: (N, P, 2) coordinates in pixels of the model's input, and (N, P) labels.
            boxes: (N, 4).
            masks: (N, 1, 4 h, 4 w).

        Returns:
            tokens (N, P', C) and a map (N, C, h, w).
        """
        coords, labels = (None, None) if points is None else points
        prompts = Prompts.of(coords, labels, None if boxes is None else boxes.reshape(-1, 4), masks)
        tokens = self.encode(prompts.to(self.no_mask_embed.weight.device))
        return tokens.sparse, tokens.dense.expand(prompts.number, -1, -1, -1)

    def _embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        h, w = self.input_image_size
        places = (points + 0.5) / torch.stack([points.new_full((), side) for side in (w, h)])
        nothing = torch.zeros_like(self.not_a_point_embed.weight)
        kinds: Any = self.point_embeddings
        table = torch.cat((nothing, self.not_a_point_embed.weight, *(kind.weight for kind in kinds)))
        # What is no point stands nowhere.
        position = self.pe_layer(places) * (labels >= 0).unsqueeze(-1)
        return position.to(table.dtype) + F.embedding(labels - IGNORED, table)

    def _embed_text(self, text: Tensor) -> Tensor:
        if self.text_dim is None:
            raise ValueError("this model takes no text prompts; build it with create_sam(..., text_dim=...)")
        if text.shape[-1] != self.text_dim:
            raise ValueError(f"text embeddings of width {text.shape[-1]} do not fit; this model takes {self.text_dim}")
        return self.text_projection(text.to(self.text_projection.weight.dtype)).unsqueeze(1)

    def _embed_masks(self, masks: Tensor | None, has_mask: Tensor | None) -> Tensor:
        h, w = self.image_embedding_size
        nothing = self.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, h, w)
        if masks is None:
            return nothing
        if tuple(masks.shape[-2:]) != self.mask_input_size:
            size, wanted = tuple(masks.shape[-2:]), self.mask_input_size
            raise ValueError(
                f"a mask prompt of {size[0]}x{size[1]} does not fit this model, which takes {wanted[0]}x{wanted[1]}: "
                "give the low-resolution logits of an earlier answer"
            )
        dense = self.mask_downscaling(masks.to(self.no_mask_embed.weight.dtype))
        return dense if has_mask is None else torch.where(has_mask.view(-1, 1, 1, 1), dense, nothing)


def _may_be_ignored(labels: Tensor) -> bool:
    """Whether some points are none, as far as one may look: a mask of nothing is right too, and a graph is for any."""
    if is_exported() or not may_look(labels):
        return True
    return any((labels == IGNORED).flatten().tolist())
