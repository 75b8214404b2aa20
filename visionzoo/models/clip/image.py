"""The image tower: any backbone, and a projection into the joint space.

Legend: B batch, C channels, (H, W) pixels, N patches, n visible ones, E embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.vit import VisionTransformer
from visionzoo.layers.mlp import ACTIVATIONS, Mlp
from visionzoo.models.masking import draw_noise, random_masking
from visionzoo.registry import require_capability


class ImageTower(nn.Module):
    """Normalised images to embeddings: (B, C, H, W) -> (B, E). Keys are ``trunk.*`` and ``head.proj.*``, open_clip's.

    Args:
        trunk: the backbone.
        embed_dim: E.
        projection: ``linear``, ``linear_bias``, or ``none`` where the pooled features are the embedding.
        patch_dropout: share of the patches that are left out in training (FLIP, arXiv 2212.00794), in [0, 1).

    Raises:
        ValueError: for a rate outside [0, 1), patch dropout on a backbone that cannot drop tokens, or a width that
            does not fit where there is no projection.
    """

    def __init__(self, trunk: Backbone, embed_dim: int, projection: str, patch_dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= patch_dropout < 1:
            raise ValueError(f"patch_dropout={patch_dropout} must be in [0, 1); FLIP uses 0.5 or 0.75")
        if patch_dropout:
            require_capability(trunk, "tokens", "patch dropout")
        self.trunk = trunk
        self.patch_dropout = patch_dropout
        self.locked = False
        self._still: list[nn.Module] = []  #: norms that keep their statistics
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if projection != "none":
            proj = layers["proj"] = nn.Linear(trunk.pooled_dim, embed_dim, bias=projection == "linear_bias")
            nn.init.normal_(proj.weight, std=trunk.pooled_dim**-0.5)
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        elif trunk.pooled_dim != embed_dim:
            raise ValueError(
                f"without a projection embed_dim={embed_dim} must be the width of {trunk.name}, {trunk.pooled_dim}"
            )
        self.head = nn.Sequential(layers)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) this tower was built for."""
        return self.trunk.image_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images -> (B, E) features, not normalised."""
        return self.head(self.pooled(images))

    def pooled(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images -> (B, trunk.pooled_dim), what the projection reads."""
        trunk = self.trunk
        if not (self.patch_dropout and self.training and not self.locked):
            return trunk.forward_head(trunk.forward_features(images), pre_logits=True)
        p = trunk.stride
        h, w = images.shape[-2] // p, images.shape[-1] // p
        if isinstance(trunk, VisionTransformer):
            h, w = trunk.patch_embed.grid_size((images.shape[-2], images.shape[-1]))
        visible = max(1, int(h * w * (1 - self.patch_dropout)))
        tokens = trunk.encode(trunk.embed(images, random_masking(draw_noise(images, h * w), visible).keep))
        return trunk.forward_head(torch.cat((tokens.prefix, tokens.x), dim=1), pre_logits=True)

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze the backbone, or all of it but its last groups of layers; the projection still learns.

        A backbone that is wholly frozen stays in eval mode, and so do its statistics. The arguments are open_clip's.

        Args:
            unlocked_groups: how many groups of layers, as timm counts them for layer-wise decay, go on learning.
            freeze_bn_stats: with some of them, whether BatchNorms of the frozen ones keep their statistics.

        Raises:
            ValueError: for more groups than there are, or fewer than none.
        """
        from timm.models import group_modules, group_parameters

        matcher = self.trunk.group_matcher() if unlocked_groups else None
        groups: dict[int, list[str]] = {} if matcher is None else group_parameters(self.trunk, matcher)
        last = max(groups, default=0) - unlocked_groups
        if unlocked_groups < 0 or (groups and last < -1):
            raise ValueError(f"unlocked_groups={unlocked_groups} must be from 0 to {len(groups)}, all of this backbone")
        self.locked, self._still = not unlocked_groups, []
        self.trunk.requires_grad_(bool(unlocked_groups))
        for place, names in groups.items():
            for name in names if place <= last else ():
                self.trunk.get_parameter(name).requires_grad_(False)
        if freeze_bn_stats and matcher is not None:
            places = group_modules(self.trunk, matcher, reverse=True)
            found = (self.trunk.get_submodule(name) for name, place in places.items() if place <= last)
            norms = nn.modules.batchnorm._BatchNorm
            self._still = [norm for part in found for norm in part.modules() if isinstance(norm, norms)]
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageTower:
        """As in torch, but what is locked stays in eval mode."""
        super().train(mode)
        for part in [self.trunk] if self.locked else self._still:
            part.eval()
        return self


def set_activation(trunk: Backbone, activation: str) -> None:
    """Give a ViT's MLPs another activation, which is no part of its weights.

    Raises:
        ValueError: for a backbone that is no native ViT, or has other MLPs.
    """
    if not isinstance(trunk, VisionTransformer) or trunk.config.mlp != "mlp":
        raise ValueError(f"the activation of {trunk.name} is its own; only native ViTs take another")
    trunk.config = replace(trunk.config, act=activation)
    for module in trunk.modules():
        if isinstance(module, Mlp):
            module.act = ACTIVATIONS[activation]()
