"""Swin Transformer (arXiv 2103.14030) and Swin Transformer v2 (arXiv 2111.09883), under timm's parameter names.

Four stages of blocks that attend within windows; every other block shifts them. Between stages 2 x 2 tokens become one.
``swin_variants`` lists the named ones.

Legend: B batch, C channels, (H, W) pixels, (h, w) token grid of a stage, D width of a stage, N tokens of a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.timm_api import Indices, TimmMixin, feature_take_indices
from visionzoo.layers.drop_path import DropPath, drop_path_schedule
from visionzoo.layers.fast_path import is_open
from visionzoo.layers.mlp import Mlp
from visionzoo.layers.patch_embed import PatchEmbed
from visionzoo.layers.window import WindowLayout, from_windows, to_windows, window_layout
from visionzoo.layers.window_attention import CosineWindowAttention, WindowAttention, resample_bias_table
from visionzoo.types import Preprocess, PyramidLevel

POOLS = ("avg", "max", "avgmax")
#: Ends of keys that are constants in older checkpoints; ours are computed.
CONSTANTS = ("relative_position_index", "relative_coords_table", "attn_mask", "k_bias")


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """The parts of a Swin. Depths, heads and the like have one value per stage."""

    version: int = 1  #: 1, or 2 for cosine attention, continuous position bias and norms after each branch
    patch_size: int = 4
    embed_dim: int  #: width of the first stage; each next one is twice as wide
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window: int  #: side of a window in tokens; no larger than a stage's grid at the default image size
    pretrained_windows: tuple[int, ...] = ()  #: v2, where the bias network was trained on other windows
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"SwinConfig.version={self.version} must be 1 or 2")
        if self.window < 1:
            raise ValueError(f"SwinConfig.window={self.window} must be at least 1 token")
        for name in ("num_heads", "pretrained_windows"):
            if len(getattr(self, name)) not in (len(self.depths), 0 if name == "pretrained_windows" else -1):
                raise ValueError(f"SwinConfig.{name}={getattr(self, name)} needs one value for each of {self.depths}")
        for i, heads in enumerate(self.num_heads):
            if self.width(i) % heads:
                raise ValueError(f"the width {self.width(i)} of stage {i} must be a multiple of its {heads} heads")

    def width(self, stage: int) -> int:
        """Channels of a stage, counted from 0: they double at each."""
        return self.embed_dim * 2**stage

    def windows(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """The window of each stage of a model made for ``image_size``: no larger than the stage's grid there."""
        sizes, grid = [], -(-min(image_size) // self.patch_size)
        for _ in self.depths:
            sizes.append(min(self.window, grid))
            grid = -(-grid // 2)
        return tuple(sizes)


class NormedPatchEmbed(PatchEmbed):
    """Patch embedding followed by a norm: (B, C, H, W) -> (B, h * w, D). Zeros fill up the last patches."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__(patch_size, in_chans, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, N, D), normalised; with ``keep`` (B, n) only those patches."""
        return self.norm(super().forward(images, keep))


class PatchMerging(nn.Module):
    """2 x 2 tokens become one of twice the width: (B, h, w, D) -> (B, ceil(h / 2), ceil(w / 2), 2 D).

    Zeros are added to the end of an odd grid.

    Args:
        dim: width D.
        norm_first: v1 norms the 4 D values of the four tokens, v2 the 2 D values they are reduced to.
    """

    def __init__(self, dim: int, *, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm = nn.LayerNorm(4 * dim if norm_first else 2 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, ceil(h / 2), ceil(w / 2), 2 D); an odd edge is padded with zeros."""
        b, h, w, dim = x.shape
        if is_open(h, w) or h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, dim).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x)) if self.norm_first else self.norm(self.reduction(x))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with its residual: (B, h, w, D) -> (B, h, w, D).

    v1's block: the norm comes first in each branch.
    """

    def __init__(self, dim: int, attn: WindowAttention, mlp_hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_hidden)
        self.drop_path2 = DropPath(drop_path)

    def attention_input(self, x: Tensor) -> Tensor:
        """What the attention reads, (B, h, w, D), before it is cut into windows."""
        return self.norm1(x)

    def attend(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """(B, h, w, D) -> the same, each token attending within its window of ``layout``."""
        return from_windows(self.attn(to_windows(self.attention_input(x), layout), layout.mask), layout)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """(B, h, w, D) -> the same."""
        x = x + self.drop_path1(self.attend(x, layout))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PostNormBlock(SwinBlock):
    """v2's block: the norm comes last in each branch (arXiv 2111.09883, section 3.2)."""

    def attention_input(self, x: Tensor) -> Tensor:
        """(B, h, w, D) as it is: Swin V2 normalises after the attention."""
        return x

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """(B, h, w, D) -> the same; norms stand at the end of the residual branches."""
        x = x + self.drop_path1(self.norm1(self.attend(x, layout)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class SwinStage(nn.Module):
    """Patch merging (but in the first stage), then blocks at one resolution; odd ones shift their windows by half."""

    def __init__(self, config: SwinConfig, index: int, window: int, drop_path: list[float]) -> None:
        super().__init__()
        dim, heads, first = config.width(index), config.num_heads[index], config.version == 1
        self.window = window
        self.grad_checkpointing = False
        self.downsample = PatchMerging(dim // 2, norm_first=first) if index else nn.Identity()
        blocks: list[SwinBlock] = []
        for rate in drop_path:
            if first:
                blocks.append(SwinBlock(dim, WindowAttention(dim, heads, window), int(dim * config.mlp_ratio), rate))
            else:
                pretrained = config.pretrained_windows[index] if config.pretrained_windows else None
                cosine = CosineWindowAttention(dim, heads, window, pretrained_window=pretrained)
                blocks.append(PostNormBlock(dim, cosine, int(dim * config.mlp_ratio), rate))
        self.blocks = nn.ModuleList(blocks)

    def layouts(self, grid: tuple[int, int], like: Tensor) -> list[WindowLayout]:
        """The window layout of each block for a (h, w) token grid, on the device of ``like``."""
        pair = [window_layout(grid, self.window, shift, like) for shift in (0, self.window // 2)]
        return [pair[i % 2] for i in range(len(self.blocks))]

    def steps(self, x: Tensor) -> list[tuple[SwinBlock, WindowLayout]]:
        """Each block with its layout for tokens ``x`` (B, h, w, D) after the patch merging."""
        layouts = self.layouts((x.shape[1], x.shape[2]), x)
        return list(zip(cast("list[SwinBlock]", list(self.blocks)), layouts, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> the stage's output, half as high and wide where it begins by merging patches."""
        x = self.downsample(x)
        for block, layout in self.steps(x):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout, use_reentrant=False)
            else:
                x = block(x, layout)
        return x


class SwinHead(nn.Module):
    """timm's classifier head: pool, dropout, ``fc``; without classes ``fc`` is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = "avg"
        self.unpooled = False  #: whether ``fc`` reads every token, after ``reset_classifier(0, "")``
        self.drop = nn.Dropout(0.0)
        self.fc: nn.Module = nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, D) -> (B, D) or (B, num_classes)."""
        x = self.drop(x) if self.unpooled else self.pooled(x)
        return x if pre_logits else self.fc(x)

    def pooled(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, D)."""
        if self.pool == "avg":
            x = x.mean(dim=(1, 2))
        elif self.pool == "max":
            x = x.amax(dim=(1, 2))
        else:
            x = 0.5 * (x.mean(dim=(1, 2)) + x.amax(dim=(1, 2)))
        return self.drop(x)


class SwinTransformer(TimmMixin, Backbone):
    """Swin v1 or v2, at any image size.

    A size that patches or windows do not divide is padded; :mod:`visionzoo.layers.window` says how, and which
    implementation is the reference. With ``pad_windows = False`` such sizes are refused instead; all others give the
    same result, to the bit.

    Args:
        config: the flavour.
        preprocess: of the published weights; its ``image_size`` is the default one and fixes each stage's window.
        image_size: (H, W) that is meant; None for the default. No parameter depends on it.
        in_chans: C.
        drop_path: stochastic-depth rate of the last block.
    """

    weights_family = "swin"

    def __init__(
        self,
        config: SwinConfig,
        preprocess: Preprocess,
        *,
        image_size: tuple[int, int] | None = None,
        in_chans: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size or preprocess.image_size
        self.preprocess = replace(preprocess, image_size=self.image_size)
        self.in_chans = in_chans
        stages = len(config.depths)
        self.embed_dim = config.embed_dim
        self.num_features = self.head_hidden_size = self.pooled_dim = self.grid_dim = config.width(stages - 1)
        self.capabilities = frozenset({"masked_image", "pyramid", "attention_maps", "any_size"})
        self.pyramid_levels = tuple(
            PyramidLevel(channels=config.width(i), stride=config.patch_size * 2**i) for i in range(stages)
        )
        self.stride = self.pyramid_levels[-1].stride
        self.pad_windows = True

        self.patch_embed = NormedPatchEmbed(config.patch_size, in_chans, config.embed_dim)
        rates = iter(drop_path_schedule(drop_path, sum(config.depths)))
        self.layers = nn.Sequential(
            *(
                SwinStage(config, i, window, [next(rates) for _ in range(config.depths[i])])
                for i, window in enumerate(config.windows(preprocess.image_size))
            )
        )
        self.norm = nn.LayerNorm(self.num_features)
        self.head = SwinHead()
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, PostNormBlock):
                # Each block starts as the identity (arXiv 2111.09883; Microsoft's ``_init_respostnorm``).
                nn.init.zeros_(module.norm1.weight)
                nn.init.zeros_(module.norm2.weight)

    def _embed(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        h, w = self.patch_embed.grid_size((images.shape[2], images.shape[3]))
        if not self.pad_windows:
            self._require_fit(images.shape[2], images.shape[3])
        x = self.patch_embed(images).unflatten(1, (h, w))
        if mask is not None:
            assert mask_token is not None, "a mask needs its token"
            x = torch.where(mask.unsqueeze(-1), mask_token.to(x.dtype), x)
        return x

    def _require_fit(self, height: int, width: int) -> None:
        unit = math.lcm(*(level.stride * s.window for level, s in zip(self.pyramid_levels, self._stages, strict=True)))
        if height % unit or width % unit:
            raise ValueError(
                f"an image of {height}x{width} pixels does not divide into this model's windows; "
                f"use multiples of {unit} pixels, or set pad_windows=True"
            )

    @property
    def _stages(self) -> list[SwinStage]:
        return cast("list[SwinStage]", list(self.layers))

    # The contract.

    def forward_features(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D) after the final norm.

        Args:
            images: normalised, of any size.
            mask: (B, h, w) bool over the first stage's grid (``ceil(H / patch_size)`` rows): patches whose embedding is
                replaced by ``mask_token`` (1, 1, D of the first stage), after its norm (SimMIM, arXiv 2111.09886).
            mask_token: owned by the SimMIM model, not by the backbone.
        """
        return self.norm(self.layers(self._embed(images, mask, mask_token)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, D) -> (B, D), or (B, num_classes) when there is a head."""
        return self.head(x, pre_logits=pre_logits)

    def pooled_features(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, D): mean over the grid, maximum, or the mean of both."""
        return self.head.pooled(x)

    def split(self, x: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, h, w, D) -> grid (B, D, h, w) and an empty prefix (B, 0, D)."""
        del image_size
        return x.permute(0, 3, 1, 2), x.new_zeros(x.shape[0], 0, x.shape[-1])

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the output (B, D_i, h_i, w_i) of each stage, finest first, none of them normed, as timm's
        ``forward_intermediates``. The last one, normed, is ``Features.grid``."""
        x, levels = self._embed(images), []
        for stage in self._stages:
            x = stage(x)
            levels.append(x.permute(0, 3, 1, 2).contiguous())
        return levels

    # What timm's tools ask for.

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Width and stride of each stage, under timm's keys."""
        levels = enumerate(self.pyramid_levels)
        return [{"num_chs": x.channels, "reduction": x.stride, "module": f"layers.{i}"} for i, x in levels]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's method: outputs (B, D_i, h_i, w_i) of stages, and what :meth:`forward_features` gives.

        Args:
            x: (B, C, H, W) normalised images.
            indices: which stages: the last n, a list, or None for all.
            norm: apply the final norm to the last stage's; it fits no other.
            stop_early: leave out the stages after the last one that is asked for; the final output is then theirs,
                without the norm.
            output_fmt: ``NCHW``.
            intermediates_only: only the outputs of stages.

        Raises:
            ValueError: for a stage that is not there, or another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} must be NCHW for a Swin")
        places, last = feature_take_indices(len(self.layers), indices), len(self.layers) - 1
        end, maps = self._embed(x), []
        for i, stage in enumerate(self._stages[: max(places) + 1] if stop_early else self._stages):
            end = stage(end)
            if i in places:
                kept = self.norm(end) if norm and i == last else end
                maps.append(kept.permute(0, 3, 1, 2).contiguous())
        if intermediates_only:
            return maps
        return (self.norm(end) if i == last else end), maps

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None, **windows: Any
    ) -> None:
        """timm's method: say that images will have another size. Windows stay as they are, as with
        ``create_backbone(name, image_size=...)``, so that no weight changes (timm's scale with the image).

        Raises:
            ValueError: for other patches or windows.
        """
        self.image_size = self._checked_input_size(img_size, {"patch_size": patch_size, **windows})
        self.preprocess = replace(self.preprocess, image_size=self.image_size)

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> for each block (B, n, heads, N, N): what each token of a window attends to; rows sum to one.

        :meth:`attention_layouts` says which tokens these are: place ``j`` of window ``i`` holds the token with raster
        index ``order[i * N + j]`` in the padded grid.
        """
        maps, x = [], self._embed(images)
        for stage in self._stages:
            x = stage.downsample(x)
            for block, layout in stage.steps(x):
                weights = block.attn.weights(to_windows(block.attention_input(x), layout), layout.mask)
                maps.append(weights.view(x.shape[0], layout.num_windows, *weights.shape[1:]))
                x = block(x, layout)
        return maps

    def attention_layouts(self, image_size: tuple[int, int], like: Tensor) -> list[WindowLayout]:
        """The window layout of each block for images of (H, W) pixels, in the order of :meth:`attention_maps`.

        Tensors in it are on the device of ``like``.
        """
        grid, layouts = self.patch_embed.grid_size(image_size), []
        for stage in self._stages:
            layouts += stage.layouts(grid, like)
            grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
        return layouts

    # What training needs to know.

    @property
    def head_drop(self) -> nn.Dropout:
        """The dropout before the classifier."""
        return self.head.drop

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head; ``global_pool`` is one of timm's poolings of a map, or ``""`` for none."""
        if global_pool:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool={global_pool!r} must be one of {', '.join(POOLS)} for a Swin, or ''")
            self.head.pool = global_pool
        if global_pool is not None:
            self.head.unpooled = global_pool == ""
        self.num_classes = num_classes
        if num_classes == 0:
            self.head.fc = nn.Identity()
            return
        weight = self.norm.weight
        self.head.fc = nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
        nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
        nn.init.zeros_(self.head.fc.bias)

    def get_classifier(self) -> nn.Module:
        """The linear layer behind the pooling; ``nn.Identity`` where there is none."""
        return self.head.fc

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """One group for each block, patch merging with the stage before it; ``coarse``: for each stage."""
        blocks = [(r"^layers\.(\d+).downsample", (0,)), (r"^layers\.(\d+)\.\w+\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Position tables, and in Swin V2 the network and the scale in their place."""
        words = ("relative_position_bias_table", "cpb_mlp", "logit_scale")
        return {name for name, _ in self.named_parameters() if any(word in name for word in words)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, to save memory."""
        for stage in self._stages:
            stage.grad_checkpointing = enable

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample v1's bias tables to this model's windows, and leave out constants that older checkpoints hold.

        v2 needs no resampling: its bias is a function of the distance, whatever the window.
        """
        del stored_size  # windows are square
        out = {k: v for k, v in state_dict.items() if not k.endswith(CONSTANTS)}
        notes = []
        for key, own in self.named_parameters():
            stored = out.get(key)
            if not key.endswith("relative_position_bias_table") or stored is None or stored.shape == own.shape:
                continue
            if stored.ndim == 2 and stored.shape[1] == own.shape[1]:
                window = (round(own.shape[0] ** 0.5) + 1) // 2
                out[key] = resample_bias_table(stored, window)
                notes.append(f"{key} resampled from {stored.shape[0]} to {own.shape[0]} relative positions")
        return out, notes
