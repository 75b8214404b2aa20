"""The contract that every backbone keeps, native or from timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from visionzoo.contract import missing_parts, refuse_missing
from visionzoo.types import BackboneInfo, Features, Preprocess, PyramidLevel, Tokens

#: What every backbone has, and what each part is for; checked when one is built.
CONTRACT: dict[str, str] = {
    "capabilities": "frozenset of names: jobs ask for them",
    "preprocess": "visionzoo.Preprocess: how its images are prepared",
    "image_size": "(H, W) it was built for, in pixels",
    "in_chans": "channels of its images",
    "num_features": "width of forward_features",
    "pooled_dim": "width of what a classifier reads",
    "grid_dim": "width of what a dense head reads",
    "stride": "pixels between neighbouring patches",
    "forward_features": "images -> last features",
    "forward_head": "last features -> pooled, or logits",
    "split": "last features -> grid and prefix",
    "reset_classifier": "makes a head for some number of classes",
    "get_classifier": "that head",
    "group_matcher": "order of layers, for layer_decay",
    "set_grad_checkpointing": "saves memory in training",
}
#: What a declared capability promises.
CAPABILITY_METHODS: dict[str, dict[str, str]] = {
    "tokens": {"embed": "images -> visible tokens", "encode": "tokens -> features"},
    "pyramid": {"pyramid": "images -> maps at several strides", "pyramid_levels": "their channels and strides"},
    "attention_maps": {"attention_maps": "images -> attention weights of each block"},
}


class Backbone(nn.Module):
    """Images in, features out, under timm's parameter names.

    A head may sit beside the trunk under timm's head keys; a bare backbone has ``num_classes == 0`` and no head
    parameters. Subclasses set the attributes below in ``__init__`` and implement :meth:`forward_features`,
    :meth:`forward_head` and :meth:`split`; the rest follows. ``registry.create_backbone`` sets ``name`` and
    ``describe``.
    """

    #: Which foreign layouts ``weights`` tries on this model: ``vit``, ``swin`` or ``timm``.
    weights_family: ClassVar[str] = "timm"
    #: Whether a graph of a backbone with ``any_size`` can leave height and width open.
    open_in_graphs: ClassVar[bool] = True

    name: str
    capabilities: frozenset[str]
    preprocess: Preprocess
    #: Fields of ``preprocess`` that the maker of this model stated; weights that say otherwise are refused.
    said_preprocess: Mapping[str, Any] = MappingProxyType({})
    image_size: tuple[int, int]  #: (H, W) this instance was built for
    in_chans: int
    num_features: int  #: timm's word for the width of ``forward_features``; equals ``grid_dim``
    pooled_dim: int
    grid_dim: int
    stride: int
    num_prefix_tokens: int = 0
    num_classes: int = 0
    pyramid_levels: tuple[PyramidLevel, ...] = ()
    head_prefixes: tuple[str, ...] = ("head.",)  #: keys that belong to a classifier's head, not to the trunk
    stem_key: str = "patch_embed.proj.weight"  #: the weight whose second axis is ``in_chans``
    describe: Callable[[], BackboneInfo]

    @property
    def info(self) -> BackboneInfo:
        """What is known of this instance; multiply-adds are counted at its own ``image_size``."""
        return replace(self.describe(), preprocess=self.preprocess)

    def check_contract(self) -> None:
        """Raise ValueError, naming everything that this backbone lacks of what it must have or declares."""
        parts = dict(CONTRACT)
        for capability, methods in CAPABILITY_METHODS.items():
            if capability in getattr(self, "capabilities", ()):
                parts |= {name: f"{what}; it declares {capability}" for name, what in methods.items()}
        missing = missing_parts(self, Backbone, parts)
        refuse_missing(f"the backbone {type(self).__name__}", missing, "docs/add-a-backbone.md")

    def forward(self, images: Tensor) -> Features:
        """(B, C, H, W) normalised images -> :class:`Features`."""
        x = self.forward_features(images)
        grid, prefix = self.split(x, (images.shape[-2], images.shape[-1]))
        return Features(self.pooled_features(x), grid, prefix)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the trunk's last, normalised output in timm's own layout."""
        raise AssertionError(f"{type(self).__name__} must implement forward_features")

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Output of :meth:`forward_features` -> (B, pooled_dim), or (B, num_classes) when there is a head."""
        raise AssertionError(f"{type(self).__name__} must implement forward_head")

    def pooled_features(self, x: Tensor) -> Tensor:
        """Output of :meth:`forward_features` -> (B, pooled_dim), also where ``reset_classifier(0, "")`` took the
        pooling out of :meth:`forward_head`."""
        return self.forward_head(x, pre_logits=True)

    def split(self, x: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Output of :meth:`forward_features` -> grid (B, grid_dim, h, w) and prefix (B, P, grid_dim)."""
        raise AssertionError(f"{type(self).__name__} must implement split")

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> feature maps (B, C_i, H_i, W_i), finest first, as ``info.pyramid`` lists them."""
        self.require("pyramid")
        raise AssertionError(f"{type(self).__name__} declares pyramid and must implement it")

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tokens:
        """Images -> tokens; ``keep`` (B, N) int64 names the visible patches, the others are never embedded."""
        self.require("tokens")
        raise AssertionError(f"{type(self).__name__} declares tokens and must implement embed")

    def encode(self, tokens: Tokens) -> Tokens:
        """Tokens, x (B, n, D), -> the same tokens after all blocks and the final norm."""
        self.require("tokens")
        raise AssertionError(f"{type(self).__name__} declares tokens and must implement encode")

    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> one tensor of attention weights per block."""
        self.require("attention_maps")
        raise AssertionError(f"{type(self).__name__} declares attention_maps and must implement it")

    def require(self, capability: str) -> None:
        """Raise ValueError unless this backbone declares ``capability``."""
        if capability not in self.capabilities:
            have = ", ".join(sorted(self.capabilities)) or "none"
            raise ValueError(f"{self.name} does not declare the capability {capability!r} (it has: {have})")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one for ``num_classes`` classes; 0 removes it.

        With ``global_pool=""`` the head gets what :meth:`forward_features` gives, unpooled, as in timm.
        """
        raise AssertionError(f"{type(self).__name__} must implement reset_classifier")

    def get_classifier(self) -> Any:
        """The head module; ``nn.Identity`` where there is none. Of distilled models both heads, as in timm."""
        raise AssertionError(f"{type(self).__name__} must implement get_classifier")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's description of layer groups, as ``timm.optim.param_groups_layer_decay`` reads it."""
        raise AssertionError(f"{type(self).__name__} must implement group_matcher")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed: class and register tokens, position tables."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass, to save memory."""
        raise AssertionError(f"{type(self).__name__} must implement set_grad_checkpointing")

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample tables of ``state_dict`` (canonical keys) that belong to another input size.

        Args:
            state_dict: the stored weights.
            stored_size: (H, W) in pixels of the images that the weights were made for; None where nothing says it.

        Returns a new dict and one line for each table that was resampled. Never changes its argument or this model.
        """
        del stored_size
        return dict(state_dict), []

    def head_keys(self) -> set[str]:
        """Those of this model's keys that belong to its head."""
        return {k for k in self.state_dict() if k.startswith(self.head_prefixes)}
