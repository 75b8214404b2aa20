"""BEiT (arXiv 2106.08254) and BEiT v2 (arXiv 2208.06366): relative position bias in every block. Names are timm's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from visionzoo.backbones.vit import VisionTransformer
from visionzoo.backbones.vit_rope import rescale_residuals
from visionzoo.backbones.vit_variants import IMAGENET, INCEPTION, register_vit, sized, spec
from visionzoo.layers.attention import GammaBlock
from visionzoo.layers.position import stored_grid
from visionzoo.layers.relative_position import CLASS_ROWS, RelativeBiasAttention, resample_relative_table
from visionzoo.types import Tokens

TABLE = "relative_position_bias_table"


class Beit(VisionTransformer):
    """A ViT without a position table; each block's attention knows how far apart two patches are.

    At another input size the tables are resampled on the fly, as timm's ``set_input_size`` does once.
    """

    block_class = GammaBlock

    def _build_attention(self, index: int) -> nn.Module:
        del index
        return RelativeBiasAttention(self.config.embed_dim, self.config.num_heads, self.grid_size)

    def _init_weights(self) -> None:
        super()._init_weights()
        assert self.cls_token is not None, "BEiT's tables have entries for a class token"
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        rescale_residuals(self.blocks)

    def block_args(self, tokens: Tokens) -> list[dict[str, Any]]:
        """For each block the (h, w) token grid and ``keep`` (B, n): its bias table is of relative positions."""
        return [{"grid_size": tokens.grid_size, "keep": tokens.keep}] * len(self.blocks)

    def _resample_tables(self, old_grid: tuple[int, int]) -> None:
        super()._resample_tables(old_grid)
        for block in self.blocks:
            attention = block.attn
            table = attention.relative_position_bias_table
            new = resample_relative_table(table.detach(), self.grid_size, old_grid=old_grid, extra_rows=CLASS_ROWS)
            attention.relative_position_bias_table = nn.Parameter(new.clone(), requires_grad=table.requires_grad)
            attention.grid_size = self.grid_size

    def no_weight_decay(self) -> set[str]:
        """The ViT's tokens and every block's table of relative positions."""
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith(TABLE)}

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample the bias tables to this model's grid (without ``stored_size`` the stored one is taken for square),
        and leave out the constant index that older checkpoints hold."""
        out, notes = super().adapt_state_dict(state_dict, stored_size)
        new, said = self.grid_size, self._grid_of(stored_size)
        out = {k: v for k, v in out.items() if not k.endswith("relative_position_index")}
        resampled = 0
        for name, own in self.named_parameters():
            stored = out.get(name)
            if not name.endswith(TABLE) or stored is None or stored.ndim != 2 or stored.shape[1] != own.shape[1]:
                continue
            if stored.shape[0] <= CLASS_ROWS:
                continue
            distances = stored_grid(stored.shape[0] - CLASS_ROWS, _distances(new), said and _distances(said))
            old = (distances[0] + 1) // 2, (distances[1] + 1) // 2
            if old != new:
                out[name] = resample_relative_table(stored, new, old_grid=old, extra_rows=CLASS_ROWS)
                resampled += 1
        if resampled:
            notes.append(f"{resampled} bias tables resampled from {old[0]}x{old[1]} to {new[0]}x{new[1]} tokens")
        return out, notes


def _distances(grid_size: tuple[int, int]) -> tuple[int, int]:
    """How many distances a grid of (h, w) tokens has along each axis."""
    return 2 * grid_size[0] - 1, 2 * grid_size[1] - 1


def _register() -> None:
    # BEiT's fine-tuned weights begin with layer scale 0.1 in base and 1e-5 in large.
    for version, size, pixels, scale, crop in (
        ("beit", "base", 224, 0.1, 0.9),
        ("beit", "base", 384, 0.1, 1.0),
        ("beit", "large", 224, 1e-5, 0.9),
        ("beit", "large", 384, 1e-5, 1.0),
        ("beit", "large", 512, 1e-5, 1.0),
        ("beitv2", "base", 224, 1e-5, 0.9),
        ("beitv2", "large", 224, 1e-5, 0.95),
    ):
        second = version == "beitv2"
        register_vit(
            f"{version}_{size}_patch16_{pixels}",
            sized(size, 16, position="none", pool="avg", layer_scale=scale),
            spec(pixels, IMAGENET if second else INCEPTION, crop),
            paper="arXiv 2208.06366" if second else "arXiv 2106.08254",
            tag="in1k_ft_in22k_in1k" if second else "in22k_ft_in22k_in1k",
            family=version,
            model_class=Beit,
        )


_register()
