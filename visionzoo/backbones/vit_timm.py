"""What timm's tools ask of a ViT: outputs of its blocks, and another input size.

Legend: B batch, C channels, (H, W) pixels, (h, w) token grid, N = h * w patch tokens, P prefix tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from visionzoo.backbones.timm_api import Indices, TimmMixin, feature_take_indices, nchw
from visionzoo.layers.position import resample_positions


class ViTTimmMixin(TimmMixin):
    """Mixin of :class:`visionzoo.backbones.vit.VisionTransformer`."""

    pos_embed: nn.Parameter | None

    @property
    def feature_info(self: Any) -> list[dict[str, Any]]:
        """Width and stride of each block, under timm's keys."""
        one = {"num_chs": self.embed_dim, "reduction": self.config.patch_size}
        return [{"module": f"blocks.{i}", **one} for i in range(len(self.blocks))]

    def forward_intermediates(
        self: Any,
        x: Tensor,
        indices: Indices = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """timm's method: outputs of blocks, and what :meth:`forward_features` gives.

        Args:
            x: (B, C, H, W) normalised images.
            indices: which blocks: the last n, a list, or None for all.
            return_prefix_tokens: with each output its prefix tokens (B, P, D), as a pair.
            norm: apply the final norm to each.
            stop_early: leave out the blocks after the last one that is asked for; the final output is then theirs.
            output_fmt: ``NCHW`` for (B, D, h, w), ``NLC`` for (B, N, D).
            intermediates_only: only the outputs of blocks.
            output_dict: a dictionary with timm's keys in place of a tuple.

        Raises:
            ValueError: for a block that is not there, or another format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} must be NCHW or NLC")
        places = feature_take_indices(len(self.blocks), indices)
        tokens = self.embed(x)
        p, grid = self.num_prefix_tokens, tokens.grid_size
        end, kept = self._blocks(tokens, places, max(places) if stop_early else None)
        if norm and not hasattr(self, "norm"):
            raise ValueError(
                f"norm=True: {self.name} has no norm behind its blocks, and its neck is for the last alone"
            )
        kept = [self.norm(y) for y in kept] if norm else kept
        prefix = [y[:, :p] for y in kept]
        maps = [nchw(y[:, p:], grid) if output_fmt == "NCHW" else y[:, p:] for y in kept]
        if output_dict:
            named: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens and p:
                named["image_intermediates_prefix"] = prefix
            return named if intermediates_only else {**named, "image_features": self._finish(end, grid)}
        found: list[Any] = list(zip(maps, prefix, strict=True)) if return_prefix_tokens and p else maps
        return found if intermediates_only else (self._finish(end, grid), found)

    def get_intermediate_layers(
        self: Any,
        x: Tensor,
        n: Indices = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """DINO's name and arguments for :meth:`forward_intermediates`, as timm has it: (B, N, D), or (B, D, h, w) if
        ``reshape``."""
        fmt = "NCHW" if reshape else "NLC"
        return self.forward_intermediates(x, n, return_prefix_tokens, norm, output_fmt=fmt, intermediates_only=True)

    def _finish(self: Any, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """What follows the blocks, in ``forward_features``: (B, P + N, D) -> the same."""
        del grid_size
        return self.norm(x)

    def set_input_size(self: Any, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """timm's method: resample the position table to images of another size, in place, once and for all.

        Images of other sizes may come without this; their positions are then resampled in each forward pass.

        Raises:
            ValueError: for another patch size, or images smaller than a patch.
        """
        size = self._checked_input_size(img_size, {"patch_size": patch_size})
        old, self.grid_size = self.grid_size, self.patch_embed.grid_size(size)
        self.image_size = size
        self.preprocess = replace(self.preprocess, image_size=size)
        if self.grid_size != old:
            self._resample_tables(old)

    def _resample_tables(self: Any, old_grid: tuple[int, int]) -> None:
        if self.pos_embed is None:
            return
        n = self.num_prefix_positions
        table = resample_positions(self.pos_embed.detach(), self.grid_size, old_grid=old_grid, prefix_tokens=n)
        self.pos_embed = nn.Parameter(table.clone(), requires_grad=self.pos_embed.requires_grad)
