"""Heads behind a backbone in pretraining; they are thrown away afterwards.

Legend: B batch, D width of the backbone's pooled features, E width that is compared, K prototypes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.sync_norm import SyncNorm1d


def mlp(widths: list[int], *, last_norm: bool) -> nn.Sequential:
    """Linear layers without bias, BatchNorm and ReLU between them: (B, widths[0]) -> (B, widths[-1]).

    BatchNorm is over the images of all processes. ``last_norm`` puts one without scale and shift behind the last (MoCo
    v3's ``_build_mlp``; SimCLR's code too).
    """
    layers: list[nn.Module] = []
    for place, (wide, narrow) in enumerate(pairwise(widths), 2):
        layers.append(nn.Linear(wide, narrow, bias=False))
        if place < len(widths):
            layers += [SyncNorm1d(narrow), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(SyncNorm1d(narrow, affine=False))
    return nn.Sequential(*layers)


class PrototypeHead(nn.Module):
    """DINO's head (arXiv 2104.14294, appendix C): an MLP with GELU, length one, then K prototypes of length one.

    Args:
        width: D.
        prototypes: K.
        hidden: width of the two hidden layers.
        bottleneck: width before the prototypes.
    """

    def __init__(self, width: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.kaiming_uniform_(self.prototypes, a=5**0.5)  # as nn.Linear's

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K), cosines."""
        return self.compare(self.unit(features))

    def unit(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., bottleneck) of length one."""
        eps = 1e-6 if features.dtype == torch.float16 else 1e-12
        return F.normalize(self.mlp(features), dim=-1, eps=eps)

    def compare(self, points: Tensor) -> Tensor:
        """(..., bottleneck) -> (..., K), products with the prototypes; linear, so the mean of many is that of their
        mean."""
        return F.linear(points, F.normalize(self.prototypes, dim=-1))
