"""MoCo: a query finds its key, made by a slowly moving copy of the encoder (arXiv 1911.05722; v3: 2104.02057).

Legend: B images, D width of what is compared, K keys in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.vit import VisionTransformer
from visionzoo.losses.contrastive import Gather
from visionzoo.losses.self_supervised import check_temperature, momentum_contrast
from visionzoo.metrics.representation import effective_negatives
from visionzoo.models.ssl.heads import mlp
from visionzoo.models.ssl.views import ViewLoss, ViewModel, check_pair, pooled


class MoCo(ViewModel):
    """MoCo v3, or with a queue the loss of v1 and v2. Made by :func:`visionzoo.models.ssl.create_ssl`.

    The patch embedding of a ViT stays as it was drawn (2104.02057, section 4.2). With BatchNorm in the encoder, keys of
    a queue would know their batch by its statistics; v1 shuffles images among processes against that, v3 needs no
    queue.

    Args:
        encoder: the backbone.
        hidden: width of the hidden layers of projector and predictor.
        out: D.
        temperature: of the loss.
        queue: K, or 0 for the keys of the batch.
    """

    queue: Tensor | None
    place: Tensor | None  #: of the oldest key

    def __init__(self, encoder: Backbone, *, hidden: int, out: int, temperature: float, queue: int) -> None:
        super().__init__(encoder)
        check_temperature("temperature", temperature)
        if queue < 0:
            raise ValueError(f"queue={queue} must be at least 0; 0 compares the images of a batch")
        self.temperature = temperature
        if isinstance(encoder, VisionTransformer):
            encoder.patch_embed.requires_grad_(False)
        depth = 1 if not isinstance(encoder, VisionTransformer) else 2  # as the reference: ResNets 2 layers, ViTs 3
        self.projector = mlp([encoder.pooled_dim, *[hidden] * depth, out], last_norm=True)
        self.predictor = mlp([out, hidden, out], last_norm=True)
        self.start_teacher()
        if queue:
            self.register_buffer("queue", F.normalize(torch.randn(queue, out), dim=1))
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        else:
            self.queue = self.place = None

    def loss(self, views: Sequence[Tensor], gather: Gather | None = None, hidden: Tensor | None = None) -> ViewLoss:
        """Two normalised views (B, C, H, W) of each image -> the loss, by which each finds the key of the other; and
        the keys, (2B, D), where there is a queue.

        Raises ValueError for another number of views.
        """
        del hidden
        check_pair(views, "MoCo")
        queries, keys = self._queries(views), self._keys(views)
        halves = [
            momentum_contrast(q, k, self.temperature, queue=self.queue, gather=gather)
            for q, k in zip(queries, reversed(keys), strict=True)
        ]
        # the queue is part of the graph until the step is done
        seen = None if self.queue is None else torch.cat([F.normalize(k, dim=1) for k in keys])
        return ViewLoss(halves[0] + halves[1], seen)

    def _queries(self, views: Sequence[Tensor]) -> list[Tensor]:
        return [self.predictor(self.projector(x)) for x in self.pooled(views)]

    @torch.no_grad()
    def _keys(self, views: Sequence[Tensor]) -> list[Tensor]:
        assert self.teacher is not None
        return [self.teacher["projector"](x) for x in pooled(self.teacher["encoder"], views)]

    @torch.no_grad()
    def remember(self, seen: Tensor, gather: Gather | None = None) -> None:
        """Put the keys (2B, D) of all processes in the place of the oldest; not those of a step that was left out."""
        assert self.queue is not None
        assert self.place is not None
        keys = seen if gather is None else gather(seen)[0]
        keys = keys[-len(self.queue) :].to(self.queue.dtype)
        fine = torch.isfinite(keys).all()
        places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = torch.where(fine, keys, self.queue[places])
        self.place.copy_((self.place + fine * len(keys)) % len(self.queue))

    def signs(self, views: Sequence[Tensor]) -> dict[str, float]:
        """How many of the other images count, for two views (B, C, H, W) of each image."""
        return {"negatives": effective_negatives(self._queries(views)[0], self._keys(views)[1], self.temperature)}
