"""SimCLR (arXiv 2002.05709): two views of an image should be alike, and unlike all views of others.

Legend: B images.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from visionzoo.backbones.base import Backbone
from visionzoo.losses.contrastive import Gather
from visionzoo.losses.self_supervised import check_temperature, nt_xent
from visionzoo.metrics.representation import effective_negatives
from visionzoo.models.ssl.heads import mlp
from visionzoo.models.ssl.views import ViewLoss, ViewModel, check_pair


class SimCLR(ViewModel):
    """A backbone and a projector. Made by :func:`visionzoo.models.ssl.create_ssl`.

    Args:
        encoder: the backbone.
        hidden: width of the projector's hidden layer; None for that of the pooled features.
        out: width of what is compared.
        temperature: of the loss.
    """

    def __init__(self, encoder: Backbone, *, hidden: int | None, out: int, temperature: float) -> None:
        super().__init__(encoder)
        check_temperature("temperature", temperature)
        self.temperature = temperature
        width = encoder.pooled_dim
        self.projector = mlp([width, hidden or width, out], last_norm=True)

    def loss(self, views: Sequence[Tensor], gather: Gather | None = None, hidden: Tensor | None = None) -> ViewLoss:
        """Two normalised views (B, C, H, W) of each image -> the loss. Raises ValueError for another number."""
        del hidden
        check_pair(views, "SimCLR")
        first, second = (self.projector(x) for x in self.pooled(views))
        return ViewLoss(nt_xent(first, second, self.temperature, gather=gather))

    def signs(self, views: Sequence[Tensor]) -> dict[str, float]:
        """How many of the other images count, for two views (B, C, H, W) of each image."""
        first, second = (self.projector(x) for x in self.pooled(views))
        return {"negatives": effective_negatives(first, second, self.temperature)}
