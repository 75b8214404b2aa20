"""The Vision Transformer (arXiv 2010.11929) and the flavours of it that the literature uses by name.

One configuration object says which parts a flavour is made of; ``vit_variants`` lists the named ones. Parameter names
are timm's.

Legend: B batch, C channels, (H, W) pixels, (h, w) token grid, N = h * w patch tokens, P prefix tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.vit_timm import ViTTimmMixin
from visionzoo.layers.attention import Attention, Block
from visionzoo.layers.drop_path import drop_path_schedule
from visionzoo.layers.mlp import Mlp, SwiGLU, SwiGLUPacked
from visionzoo.layers.patch_embed import PatchEmbed
from visionzoo.layers.pool import AttentionPool
from visionzoo.layers.position import resample_positions, sincos_2d, stored_grid
from visionzoo.types import Preprocess, PyramidLevel, Tokens

POOLS = ("token", "avg", "map", "distill")
POSITIONS = ("learned", "sincos", "none")
MLPS = ("mlp", "swiglu", "swiglu_packed")


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The parts of a ViT flavour. Everything has the original paper's value by default."""

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    mlp: str = "mlp"  #: ``mlp``, ``swiglu`` or ``swiglu_packed`` (gate and value share ``mlp_ratio``)
    act: str = "gelu"
    eps: float = 1e-6  #: of every norm
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None  #: initial value; None for no layer scale
    class_token: bool = True
    distill_token: bool = False
    registers: int = 0
    position: str = "learned"
    prefix_positions: bool = True  #: the position table has entries for the prefix tokens too
    pool: str = "token"
    pool_norm: bool | None = None  #: norm after pooling, not before; None means: with average pooling only
    pre_norm: bool = False  #: a norm before the first block, and no bias in the patch embedding (CLIP)
    partial_patches: str = "pad"

    def __post_init__(self) -> None:
        for name, allowed in (("pool", POOLS), ("position", POSITIONS), ("mlp", MLPS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"ViTConfig.{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")
        if self.pool == "token" and not self.class_token:
            raise ValueError("pool='token' reads the class token; set class_token=True or choose pool='avg'")
        if self.pool == "distill" and not (self.class_token and self.distill_token):
            raise ValueError("pool='distill' reads the class and the distillation token; set both")

    @property
    def norm_after_pool(self) -> bool:
        """Whether the last norm follows the pooling (timm's ``fc_norm``)."""
        return self.pool == "avg" if self.pool_norm is None else self.pool_norm

    @property
    def num_prefix_tokens(self) -> int:
        """P: class, distillation and register tokens together."""
        return int(self.class_token) + int(self.distill_token) + self.registers

    @property
    def mlp_hidden(self) -> int:
        """Width of each block's hidden layer."""
        return int(self.embed_dim * self.mlp_ratio)


class VisionTransformer(ViTTimmMixin, Backbone):
    """A ViT of any flavour that :class:`ViTConfig` can say.

    Takes any image of at least one patch: position tables are resampled to its grid, and a size that is no multiple of
    the patch is padded with zeros at the right and bottom (the reference at such sizes is timm's ViT with
    ``dynamic_img_size=True, dynamic_img_pad=True``), or cropped where the published weights were trained that way.

    Args:
        config: the flavour.
        preprocess: of the published weights; its ``image_size`` is the default one.
        image_size: (H, W) of the position table; None for the default.
        in_chans: C.
        drop_path: stochastic-depth rate of the last block.
    """

    weights_family = "vit"
    block_class: ClassVar[type[Block]] = Block

    def __init__(
        self,
        config: ViTConfig,
        preprocess: Preprocess,
        *,
        image_size: tuple[int, int] | None = None,
        in_chans: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.image_size = image_size or preprocess.image_size
        self.preprocess = replace(preprocess, image_size=self.image_size)
        self.in_chans = in_chans
        self.num_features = self.embed_dim = self.head_hidden_size = self.pooled_dim = self.grid_dim = dim
        self.stride = config.patch_size
        self.num_prefix_tokens = config.num_prefix_tokens
        self.capabilities = frozenset({"tokens", "masked_image", "pyramid", "attention_maps", "any_size"})
        self.pyramid_blocks = sorted({max(config.depth * i // 4 - 1, 0) for i in (1, 2, 3, 4)})
        self.pyramid_levels = tuple(PyramidLevel(channels=dim, stride=config.patch_size) for _ in self.pyramid_blocks)
        self.head_prefixes = ("head.", "head_dist.") if config.pool == "distill" else ("head.",)
        self.grad_checkpointing = False
        self.unpooled = False  #: whether the head reads all tokens, after ``reset_classifier(0, "")``

        self.patch_embed = PatchEmbed(
            config.patch_size, in_chans, dim, bias=not config.pre_norm, partial=config.partial_patches
        )
        self.grid_size = self.patch_embed.grid_size(self.image_size)
        if min(self.image_size) < config.patch_size:
            raise ValueError(f"image_size={self.image_size} is smaller than the patch of {config.patch_size} pixels")
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim)) if config.distill_token else None
        self.reg_token = nn.Parameter(torch.empty(1, config.registers, dim)) if config.registers else None
        self._build_positions()
        self.norm_pre = nn.LayerNorm(dim, eps=config.eps) if config.pre_norm else nn.Identity()
        self.blocks: Any = nn.Sequential(
            *(self._build_block(i, rate) for i, rate in enumerate(drop_path_schedule(drop_path, config.depth)))
        )
        self._build_tail()
        self._init_weights()

    def _build_tail(self) -> None:
        """What follows the blocks: norms, pooling, heads."""
        cfg = self.config
        self.norm = nn.Identity() if cfg.norm_after_pool else nn.LayerNorm(cfg.embed_dim, eps=cfg.eps)
        self.attn_pool = (
            AttentionPool(cfg.embed_dim, cfg.num_heads, cfg.mlp_hidden, act=cfg.act, eps=cfg.eps)
            if cfg.pool == "map"
            else None
        )
        self.fc_norm = nn.LayerNorm(cfg.embed_dim, eps=cfg.eps) if cfg.norm_after_pool else nn.Identity()
        self.head_drop = nn.Dropout(0.0)
        self.head: nn.Module = nn.Identity()
        if cfg.pool == "distill":
            self.head_dist: nn.Module = nn.Identity()

    def _build_positions(self) -> None:
        cfg = self.config
        self.pos_embed: nn.Parameter | None = None
        if cfg.position == "none":
            return
        prefix = self.num_prefix_positions
        if cfg.position == "sincos":
            table = sincos_2d(self.grid_size, cfg.embed_dim, prefix_tokens=prefix)
            self.pos_embed = nn.Parameter(table.to(self.patch_embed.proj.weight.device), requires_grad=False)
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, prefix + self.grid_size[0] * self.grid_size[1], cfg.embed_dim))

    def _build_block(self, index: int, drop_path: float) -> Block:
        cfg = self.config
        return self.block_class(
            cfg.embed_dim,
            self._build_attention(index),
            self._build_mlp(),
            layer_scale=cfg.layer_scale,
            drop_path=drop_path,
            eps=cfg.eps,
        )

    def _build_attention(self, index: int) -> nn.Module:
        """The attention of block ``index``; :meth:`block_args` are its keyword arguments."""
        del index  # here all blocks are alike
        cfg = self.config
        return Attention(cfg.embed_dim, cfg.num_heads, qkv_bias=cfg.qkv_bias, qk_norm=cfg.qk_norm, eps=cfg.eps)

    def _build_mlp(self) -> nn.Module:
        cfg = self.config
        if cfg.mlp == "mlp":
            return Mlp(cfg.embed_dim, cfg.mlp_hidden, cfg.act)
        return (SwiGLUPacked if cfg.mlp == "swiglu_packed" else SwiGLU)(cfg.embed_dim, cfg.mlp_hidden)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.position == "learned" and self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.dist_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    @property
    def num_prefix_positions(self) -> int:
        """How many of the position table's entries belong to prefix tokens."""
        return self.num_prefix_tokens if self.config.prefix_positions else 0

    @property
    def pooled_token(self) -> int | None:
        """The token that ``pooled`` is; None where all patches take part."""
        return 0 if self.config.pool in ("token", "distill") else None

    # The two halves: tokens, then blocks.

    def embed(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        """(B, C, H, W) -> tokens with their positions added.

        Args:
            images: normalised.
            keep: (B, n) int64 raster indices of visible patches (MAE, FLIP); the others are never embedded.
            mask: (B, h, w) bool; patches whose embedding is replaced by ``mask_token`` (1, 1, D) before positions
                are added (SimMIM, BEiT).
        """
        grid_size = self.patch_embed.grid_size((images.shape[2], images.shape[3]))
        x = self.patch_embed(images, keep)
        if mask is not None:
            assert mask_token is not None, "a mask needs its token"
            assert keep is None, "dropping and masking patches at once has no meaning"
            x = torch.where(mask.flatten(1).unsqueeze(-1), mask_token.to(x.dtype), x)
        tokens: list[Tensor] = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else x.new_zeros(1, 0, x.shape[-1])
        table = self._position_table(grid_size)
        if table is not None:
            n = self.num_prefix_positions
            patch_table = table[:, n:]
            if keep is not None:
                patch_table = patch_table.expand(x.shape[0], -1, -1)
                patch_table = patch_table.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            x = x + patch_table
            if n:
                prefix = prefix + table[:, :n]
        return Tokens(x, prefix.to(x.dtype).expand(x.shape[0], -1, -1), grid_size, keep)

    def _position_table(self, grid_size: tuple[int, int]) -> Tensor | None:
        """What is added to the tokens of a (h, w) grid: (1, prefix positions + h * w, D); None for nothing."""
        if self.pos_embed is None:
            return None
        n = self.num_prefix_positions
        return resample_positions(self.pos_embed, grid_size, old_grid=self.grid_size, prefix_tokens=n)

    def encode(self, tokens: Tokens) -> Tokens:
        """Tokens, x (B, n, D), -> the same after all blocks and the final norm (which average pooling applies
        later)."""
        x = self.norm(self._blocks(tokens, []))
        return self._split_tokens(x, tokens)

    def _split_tokens(self, x: Tensor, tokens: Tokens) -> Tokens:
        p = self.num_prefix_tokens
        return Tokens(x[:, p:], x[:, :p], tokens.grid_size, tokens.keep)

    def block_args(self, tokens: Tokens) -> list[dict[str, Any]]:
        """Each block's keyword arguments for these tokens (B, n, D): position information that is not in the
        tokens."""
        del tokens
        return [{}] * len(self.blocks)

    def _sequence(self, tokens: Tokens) -> Tensor:
        """Prefix and patches in one, (B, P + N, D), as the first block takes them."""
        return self.norm_pre(torch.cat((tokens.prefix, tokens.x), dim=1) if tokens.prefix.shape[1] else tokens.x)

    def _blocks(self, tokens: Tokens, collect: list[int], last: int | None = None) -> Any:
        """The sequence (B, P + N, D) after the last block; with ``collect``, those after the named blocks as well."""
        x, kept = self._sequence(tokens), []
        for i, (block, args) in enumerate(zip(self.blocks, self.block_args(tokens), strict=True)):
            if last is not None and i > last:
                break
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, **args)
            else:
                x = block(x, **args)
            if i in collect:
                kept.append(x)
        return (x, kept) if collect else x

    # The contract.

    def forward_features(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, P + N, D), prefix tokens first, after the final norm."""
        return self.norm(self._blocks(self.embed(images, mask=mask, mask_token=mask_token), []))

    def split(self, x: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, P + N, D) -> grid (B, D, h, w) and prefix (B, P, D)."""
        p = self.num_prefix_tokens
        return self._grid(x[:, p:], self.patch_embed.grid_size(image_size)), x[:, :p]

    @staticmethod
    def _grid(x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *grid_size)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, P + N, D) -> (B, D), or (B, num_classes) with a head. Distilled models average their two heads."""
        if self.unpooled:
            x = self.head_drop(self.fc_norm(x))
        elif self.config.pool == "distill" and self.num_classes and not pre_logits:
            return (self.head(self.head_drop(x[:, 0])) + self.head_dist(self.head_drop(x[:, 1]))) / 2
        else:
            x = self.pooled_features(x)
        return x if pre_logits else self.head(x)

    def pooled_features(self, x: Tensor) -> Tensor:
        """(B, P + N, D) -> (B, D): the class token, the mean of the patches, or attention pooling."""
        pool, p = self.config.pool, self.num_prefix_tokens
        if pool == "distill":
            return (self.head_drop(x[:, 0]) + self.head_drop(x[:, 1])) / 2
        if self.attn_pool is not None:
            pooled = self.attn_pool(x[:, p:])
        else:
            pooled = x[:, 0] if pool == "token" else x[:, p:].mean(dim=1)
        return self.head_drop(self.fc_norm(pooled))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps (B, D, h, w) after each quarter of the depth, without the final norm; strides repeat."""
        tokens = self.embed(images)
        _, kept = self._blocks(tokens, self.pyramid_blocks)
        return [self._grid(x[:, self.num_prefix_tokens :], tokens.grid_size) for x in kept]

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> for each block (B, heads, P + N, P + N): row i, what token i attends to, sums to one."""
        tokens = self.embed(images)
        x, maps = self._sequence(tokens), list[Tensor]()
        for block, args in zip(self.blocks, self.block_args(tokens), strict=True):
            maps.append(block.attn.weights(block.norm1(x), **args))
            x = block(x, **args)
        return maps

    # What training needs to know.

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head; ``global_pool`` may be token or avg, or ``""`` for an unpooled answer."""
        if global_pool:
            self.unpooled = False
            if global_pool != self.config.pool:
                self.config = self._repooled(global_pool)
        elif global_pool == "":
            self.unpooled = self.config.pool != "distill"  # whose heads read two tokens, as timm's do
        self.num_classes = num_classes
        self.head = self._linear(num_classes)
        if self.config.pool == "distill":
            self.head_dist = self._linear(num_classes)

    def _repooled(self, pool: str) -> ViTConfig:
        if "map" in (pool, self.config.pool) or "distill" in (pool, self.config.pool):
            raise ValueError(
                f"cannot change the pooling of {getattr(self, 'name', 'this model')} from {self.config.pool!r} to "
                f"{pool!r}: its weights differ; choose 'token' or 'avg' on a model with one of these"
            )
        # The norm stays where the weights have it, as timm keeps it.
        return replace(self.config, pool=pool, pool_norm=self.config.norm_after_pool)

    def _linear(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        weight = self.patch_embed.proj.weight
        head = nn.Linear(self.pooled_dim, num_classes, device=weight.device, dtype=weight.dtype)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def get_classifier(self) -> Any:
        """The head; of a model with a distillation token both."""
        return (self.head, self.head_dist) if self.config.pool == "distill" else self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """One group for each block, as timm counts them; the embedding comes first."""
        del coarse
        return {
            "stem": r"^cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Position table, class, register and distillation tokens."""
        return {"pos_embed", "cls_token", "reg_token", "dist_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, to save memory."""
        self.grad_checkpointing = enable

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample ``pos_embed`` to this model's grid; without ``stored_size`` the stored one is taken for square."""
        out, notes = dict(state_dict), list[str]()
        stored, n, new = out.get("pos_embed"), self.num_prefix_positions, self.grid_size
        if stored is None or self.pos_embed is None or stored.ndim != 3:
            return out, notes
        if stored.shape[2] != self.embed_dim or stored.shape[1] <= n:
            return out, notes
        old = stored_grid(stored.shape[1] - n, new, self._grid_of(stored_size))
        if old != new:
            out["pos_embed"] = resample_positions(stored, new, old_grid=old, prefix_tokens=n)
            notes.append(f"pos_embed resampled from {old[0]}x{old[1]} to {new[0]}x{new[1]} tokens")
        return out, notes

    def _grid_of(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """The (h, w) grid of images of ``size`` pixels; None where it is not known."""
        return None if size is None else self.patch_embed.grid_size(size)
