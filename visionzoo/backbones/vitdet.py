"""ViTDet's ViT with windowed blocks (arXiv 2203.16527), as SAM's image encoder (arXiv 2304.02643). Names are timm's.

Legend: B batch, D width, C neck width, (h, w) token grid, N = h * w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.vit import VisionTransformer, ViTConfig
from visionzoo.backbones.vit_variants import IMAGENET, register_vit, sized, spec
from visionzoo.layers.decomposed_attention import DecomposedAttention, resample_distances
from visionzoo.layers.position import resample_positions
from visionzoo.layers.window import WindowLayout, window_layout
from visionzoo.types import Tokens


@dataclass(frozen=True, kw_only=True)
class ViTDetConfig(ViTConfig):
    """A ViT flavour whose blocks attend within windows, but for a few."""

    window: int = 14
    global_blocks: tuple[int, ...]  #: indices of the blocks that attend to the whole image
    neck: int | None = 256  #: C; None for a norm in its place


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same, normalised over C."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class MapHead(nn.Module):
    """timm's classifier head for maps: average, dropout, ``fc``; without classes ``fc`` is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.0)
        self.fc: nn.Module = nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, C) or (B, num_classes)."""
        x = self.drop(x.mean(dim=(2, 3)))
        return x if pre_logits else self.fc(x)


class ViTDet(VisionTransformer):
    """SAM's image encoder: windowed and global blocks with decomposed relative positions, then a neck.

    ``grid`` is what the neck gives, ``pooled`` its mean, and :meth:`pyramid` the maps of width D before it. There are
    no prefix tokens. Images may have any size: positions are resampled, and a size that is no multiple of the patch
    is padded with zeros at the right and bottom (timm cuts such pixels off).
    """

    config: ViTDetConfig

    def __init__(self, config: ViTDetConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # Windows need all their tokens.
        self.capabilities -= {"tokens"}
        self.num_features = self.head_hidden_size = self.pooled_dim = self.grid_dim = config.neck or config.embed_dim

    def _build_positions(self) -> None:
        self.pos_embed = None
        if self.config.position == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, *self.grid_size, self.config.embed_dim))

    def _build_attention(self, index: int) -> nn.Module:
        cfg = self.config
        windowed = index not in cfg.global_blocks
        size = (cfg.window, cfg.window) if windowed else self.grid_size
        return DecomposedAttention(cfg.embed_dim, cfg.num_heads, size, windowed=windowed, qkv_bias=cfg.qkv_bias)

    def _build_tail(self) -> None:
        cfg = self.config
        self.neck: nn.Module = LayerNorm2d(cfg.embed_dim, eps=1e-6)
        if cfg.neck is not None:
            self.neck = nn.Sequential(
                nn.Conv2d(cfg.embed_dim, cfg.neck, kernel_size=1, bias=False),
                LayerNorm2d(cfg.neck, eps=1e-6),
                nn.Conv2d(cfg.neck, cfg.neck, kernel_size=3, padding=1, bias=False),
                LayerNorm2d(cfg.neck, eps=1e-6),
            )
        self.head: Any = MapHead()
        self.head_drop = self.head.drop

    def embed(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        """(B, C, H, W) -> tokens (B, N, D). ``keep`` is refused: windows need the whole grid."""
        if keep is not None:
            self.require("tokens")
        return super().embed(images, mask=mask, mask_token=mask_token)

    def encode(self, tokens: Tokens) -> Tokens:
        """Refused: tokens (B, n, D) of a part of the grid have no windows."""
        return Backbone.encode(self, tokens)

    def _position_table(self, grid_size: tuple[int, int]) -> Tensor | None:
        if self.pos_embed is None:
            return None
        return resample_positions(self.pos_embed.flatten(1, 2), grid_size, old_grid=self.grid_size)

    def block_args(self, tokens: Tokens) -> list[dict[str, Any]]:
        """For each block the (h, w) token grid, for its windows and its relative positions."""
        return [{"grid_size": tokens.grid_size}] * len(self.blocks)

    def forward_features(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), after the neck."""
        tokens = self.embed(images, mask=mask, mask_token=mask_token)
        return self.neck(self._grid(self._blocks(tokens, []), tokens.grid_size))

    def split(self, x: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) as the grid, and an empty prefix (B, 0, D)."""
        del image_size
        return x, x.new_zeros(x.shape[0], 0, x.shape[1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, C), or (B, num_classes) with a head."""
        return x if self.unpooled else self.head(x, pre_logits)

    def pooled_features(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D), the mean over the grid."""
        return self.head(x, True)

    def _finish(self, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        return self.neck(self._grid(x, grid_size))

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Refused: build the model for another size, ``create_backbone(name, image_size=...)``."""
        del patch_size
        raise ValueError(
            f"set_input_size({img_size}): the tables of {self.name} are made for its size; build it with "
            "create_backbone(name, image_size=...), which resamples those of its weights"
        )

    def attention_layouts(self, image_size: tuple[int, int], like: Tensor) -> list[WindowLayout | None]:
        """The windows of each block for images of (H, W) pixels, in the order of :meth:`attention_maps`.

        None for a global block. A windowed block's map is (B, n, heads, s * s, s * s). Tensors are on the device of
        ``like``.
        """
        layout = window_layout(self.patch_embed.grid_size(image_size), self.config.window, 0, like)
        return [None if i in self.config.global_blocks else layout for i in range(len(self.blocks))]

    # What training needs to know.

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head on the mean. Raises ValueError for another pooling: there is no class token."""
        if global_pool == "" and num_classes:
            raise ValueError(f"num_classes={num_classes} without pooling: the head reads the mean; use 'avg'")
        if global_pool not in (None, "avg", ""):
            raise ValueError(
                f"global_pool={global_pool!r} is not possible for this model without a class token; use 'avg'"
            )
        self.unpooled = self.unpooled if global_pool is None else global_pool == ""
        self.num_classes = num_classes
        self.head.fc = self._linear(num_classes)

    def get_classifier(self) -> nn.Module:
        """The linear layer behind the pooling."""
        return self.head.fc

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """One group for each block; the neck is nearest the output."""
        del coarse
        return {"stem": r"^pos_embed|patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^neck", (99999,))]}

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample the position table and the global blocks' relative positions to this model's grid."""
        del stored_size  # its tables have both axes
        out, notes = dict(state_dict), []
        for name, own in self.named_parameters():
            stored = out.get(name)
            if (
                stored is None
                or stored.shape == own.shape
                or stored.ndim != own.ndim
                or stored.shape[-1] != own.shape[-1]
            ):
                continue
            if name == "pos_embed":
                old, new = (stored.shape[1], stored.shape[2]), self.grid_size
                table = resample_positions(stored.flatten(1, 2), new, old_grid=old)
                out[name] = table.view(own.shape)
                notes.append(f"pos_embed resampled from {old[0]}x{old[1]} to {new[0]}x{new[1]} tokens")
            elif name.endswith(("rel_pos_h", "rel_pos_w")):
                out[name] = resample_distances(stored, (own.shape[0] + 1) // 2).contiguous()
                notes.append(f"{name} resampled from {stored.shape[0]} to {own.shape[0]} distances")
        return out, notes


def _config(size: str, **parts: Any) -> ViTDetConfig:
    own = {k: parts.pop(k) for k in ("neck",) if k in parts}
    base = sized(size, 16, class_token=False, pool="avg", pool_norm=False, **parts)
    return ViTDetConfig(**vars(base), global_blocks=tuple(base.depth * i // 4 - 1 for i in (1, 2, 3, 4)), **own)


def _register() -> None:
    # Norms are Meta's, with eps 1e-6. timm builds these with 1e-5, which is not what the weights were trained with.
    for size in ("base", "large", "huge"):
        register_vit(
            f"samvit_{size}_patch16",
            _config(size),
            spec(1024, IMAGENET, 1.0),
            paper="arXiv 2304.02643",
            tag="sa1b",
            family="vitdet",
            model_class=ViTDet,
        )
    register_vit(
        "samvit_base_patch16_224",
        _config("base", position="none", eps=1e-5, neck=None),
        spec(224, IMAGENET, 0.9),
        paper="arXiv 2203.16527",
        family="vitdet",
        model_class=ViTDet,
    )


_register()
