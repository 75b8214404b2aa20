"""SAM's mask decoder (arXiv 2304.02643, appendix A): tokens and an image embedding to masks and their quality.

Legend: N prompts, T prompt tokens, S = h * w cells, C width, K = 4 masks (one for a clear prompt, then three for an
ambiguous one), M masks that are asked for.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.backbones.vitdet import LayerNorm2d
from visionzoo.layers.fast_path import is_plain
from visionzoo.layers.linear import linear
from visionzoo.models.sam.transformer import Cells, TwoWayTransformer, is_exported

#: Cells that are upscaled at a time when nothing is learned: what becomes of them stays in a core's own cache.
_CELLS_AT_ONCE = 512


class MLP(nn.Module):
    """Layers with ReLU between them. Meta's names."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        widths = [dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., out); ReLU between the layers."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Decoded(NamedTuple):
    """What the two-way Transformer gives: masks and scores are read off it."""

    masks: Tensor  #: (N, K, C), the tokens of the masks
    score: Tensor  #: (N, C), the token of their quality
    keys: Tensor  #: (N, S, C)
    grid: tuple[int, int]  #: (h, w)

    def select(self, index: Tensor) -> Decoded:
        """Only some of the prompts: ``index`` (n,)."""
        return Decoded(self.masks[index], self.score[index], self.keys[index], self.grid)


class _UpscalingWeights(NamedTuple):
    """The upscaling as matrix products."""

    first: Tensor  #: (4 * C / 4, C)
    first_bias: Tensor
    norm: Any
    second: Tensor  #: (4 * C / 8, C / 4)
    second_bias: Tensor


class MaskDecoder(nn.Module):
    """Embeddings in, masks out. Parameters are Meta's, and so is :meth:`forward`.

    Args:
        dim: C, a multiple of 8.
        num_multimask_outputs: masks of an ambiguous prompt.
    """

    def __init__(self, dim: int = 256, num_multimask_outputs: int = 3) -> None:
        super().__init__()
        self.transformer_dim = dim
        self.num_multimask_outputs = num_multimask_outputs
        self.num_mask_tokens = num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(dim, mlp_dim=8 * dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(self.num_mask_tokens))
        self.iou_prediction_head = MLP(dim, dim, self.num_mask_tokens, 3)

    def mask_slice(self, multimask: bool | None) -> slice:
        """Which of the K masks: the three for an ambiguous prompt, the one for a clear one, or (None) all."""
        if multimask is None:
            return slice(0, self.num_mask_tokens)
        return slice(1, self.num_mask_tokens) if multimask else slice(0, 1)

    def cells(self, embeddings: Tensor, positions: Tensor, dense: Tensor) -> Cells:
        """What the Transformer reads of images.

        Args:
            embeddings: (B, C, h, w) of one image, or of one for each prompt.
            positions: (1, C, h, w).
            dense: (1, C, h, w) or (N, C, h, w), added to it.
        """
        dtype = self.iou_token.weight.dtype
        source = embeddings.to(dtype).flatten(2).transpose(-2, -1) + dense.to(dtype).flatten(2).transpose(-2, -1)
        return self.transformer.cells(source, positions.to(dtype).flatten(2).transpose(-2, -1).contiguous())

    def decode(self, cells: Cells, grid: tuple[int, int], sparse: Tensor, valid: Tensor | None = None) -> Decoded:
        """Run the Transformer.

        Args:
            cells: from :meth:`cells`.
            grid: (h, w).
            sparse: (N, T, C).
            valid: (N, T) bool, False for padding.
        """
        own = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((own.expand(sparse.shape[0], -1, -1), sparse), dim=1)
        if valid is not None:
            valid = F.pad(valid, (len(own), 0), value=True)
        tokens, keys = self.transformer(tokens, cells, valid)
        return Decoded(tokens[:, 1 : len(own)], tokens[:, 0], keys, grid)

    def scores(self, decoded: Decoded, multimask: bool | None) -> Tensor:
        """Predicted IoU of each mask with the object: (N, M)."""
        return self.iou_prediction_head(decoded.score)[:, self.mask_slice(multimask)]

    def masks(self, decoded: Decoded, multimask: bool | None) -> Tensor:
        """Logits of the masks, at four times the embedding's resolution: (N, M, 4 h, 4 w)."""
        chosen = range(self.num_mask_tokens)[self.mask_slice(multimask)]
        weights = torch.stack([self.output_hypernetworks_mlps[k](decoded.masks[:, k]) for k in chosen], dim=1)
        n, s, _ = decoded.keys.shape
        upscaling = self._upscaling_weights()
        if upscaling is None or is_exported():
            height, width = decoded.grid
            image = self.output_upscaling(
                decoded.keys.transpose(-2, -1).reshape(n, self.transformer_dim, height, width)
            )
            return (weights @ image.flatten(2)).reshape(n, len(chosen), 4 * height, 4 * width)
        if torch.is_grad_enabled() and (decoded.keys.requires_grad or weights.requires_grad):
            values = _upscale(decoded.keys, weights, upscaling)
        else:
            values = decoded.keys.new_empty(n, len(chosen), s, 16)
            several = max(1, _CELLS_AT_ONCE // s)
            for i, start in product(range(0, n, several), range(0, s, _CELLS_AT_ONCE)):
                rows, part = slice(i, i + several), slice(start, start + _CELLS_AT_ONCE)
                values[rows, :, part] = _upscale(decoded.keys[rows, part], weights[rows], upscaling)
        h, w = decoded.grid
        # Each cell holds its 2 x 2 of 2 x 2 pixels.
        pixels = values.view(n, len(chosen), h, w, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return pixels.reshape(n, len(chosen), 4 * h, 4 * w)

    def _upscaling_weights(self) -> _UpscalingWeights | None:
        """The upscaling as matrix products; None where a layer of it is not plain, and has to be called."""
        kinds = (nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, nn.GELU)
        if not all(is_plain(layer, kind) for layer, kind in zip(self.output_upscaling, kinds, strict=True)):
            return None
        first, norm, _, second, _ = self.output_upscaling
        layers: list[Any] = [first, second]
        (w1, b1), (w2, b2) = ((_as_matrix(layer.weight), layer.bias.repeat(4)) for layer in layers)
        return _UpscalingWeights(w1, b1, norm, w2, b2)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Meta's own signature: masks and scores of N prompts of one image.

        Args:
            image_embeddings: (1, C, h, w).
            image_pe: (1, C, h, w).
            sparse_prompt_embeddings: (N, T, C).
            dense_prompt_embeddings: (N, C, h, w).
            multimask_output: three masks for each prompt, or one.

        Returns:
            (N, M, 4 h, 4 w) logits and (N, M) scores.
        """
        decoded = self._decode(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        return self.masks(decoded, multimask_output), self.scores(decoded, multimask_output)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Meta's method under :meth:`forward`, which their ONNX export calls: all masks (N, K, h, w) and their scores
        (N, K), that of a clear prompt first."""
        decoded = self._decode(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        return self.masks(decoded, None), self.scores(decoded, None)

    def _decode(self, embeddings: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor) -> Decoded:
        if not is_exported() and dense.stride(0) == 0:  # no prompt has a mask: all see the same image
            dense = dense[:1]
        grid = (embeddings.shape[2], embeddings.shape[3])
        return self.decode(self.cells(embeddings, positions, dense), grid, sparse)


def _as_matrix(weight: Tensor) -> Tensor:
    """Weight (C, E, 2, 2) of a transposed convolution of stride 2 as a linear layer's, (2 * 2 * E, C)."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2)


def _upscale(keys: Tensor, weights: Tensor, upscaling: _UpscalingWeights) -> Tensor:
    """The upscaling, cell by cell: transposed convolutions whose stride is their size do not overlap.

    (N, S, C) cells and (N, M, C / 8) weights -> (N, M, S, 16) logits of the pixels of each cell.
    """
    n, s, _ = keys.shape
    norm = upscaling.norm
    x = F.linear(keys, upscaling.first, upscaling.first_bias).view(n, 4 * s, *norm.normalized_shape)
    x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
    x = linear(x, upscaling.second, upscaling.second_bias, gelu="none").view(n, 16 * s, weights.shape[2])
    return (weights @ x.transpose(-2, -1)).view(n, weights.shape[1], s, 16)
