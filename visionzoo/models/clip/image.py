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
        return self.head(self._pooled(images))

    def _pooled(self, images: Tensor) -> Tensor:
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

    def lock(self) -> None:
        """Freeze the backbone and keep it in eval mode; the projection still learns."""
        self.locked = True
        self.trunk.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ImageTower:
        super().train(mode)
        if self.locked:
            self.trunk.eval()
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
