"""MoCo: a query finds its key, made by a slowly moving copy of the encoder (arXiv 1911.05722; v3: 2104.02057).

Legend: B images, D width of what is compared, K keys in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.vit import VisionTransformer
from visionzoo.losses.contrastive import Gather
from visionzoo.losses.self_supervised import check_temperature, momentum_contrast
from visionzoo.models.ssl.heads import mlp
from visionzoo.models.ssl.views import ViewModel, follow, momentum_copy, pooled


class MoCo(ViewModel):
    """MoCo v3, or with a queue the loss of v1 and v2. Made by :func:`visionzoo.models.ssl.create_ssl`.

    The patch embedding of a ViT stays as it was drawn (2104.02057, section 4.2). With BatchNorm in the encoder, keys of
    a queue would know their batch by its statistics; v1 shuffles images among processes against that, v3 needs no queue.

    Args:
        encoder: the backbone.
        hidden: width of the hidden layers of projector and predictor.
        out: D.
        temperature: of the loss.
        queue: K, or 0 for the keys of the batch.
    """

    queue: Tensor | None
    place: Tensor | None

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
        self.teacher = momentum_copy(nn.ModuleDict({"encoder": encoder, "projector": self.projector}))
        if queue:
            self.register_buffer("queue", F.normalize(torch.randn(queue, out), dim=1))
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        else:
            self.queue = self.place = None

    def loss(self, views: Sequence[Tensor], gather: Gather | None = None) -> Tensor:
        """Two normalised views (B, C, H, W) of each image -> a float32 scalar: each finds the key of the other.

        Raises ValueError for another number of views.
        """
        if len(views) != 2:
            raise ValueError(f"{len(views)} views of each image; MoCo compares two")
        queries = [self.predictor(self.projector(x)) for x in self.pooled(views)]
        with torch.no_grad():
            keys = [self.teacher["projector"](x) for x in pooled(self.teacher["encoder"], views)]
        halves = [
            momentum_contrast(q, k, self.temperature, queue=self.queue, gather=gather)
            for q, k in zip(queries, reversed(keys), strict=True)
        ]
        if self.queue is not None:
            self._remember(torch.cat([F.normalize(k, dim=1) for k in keys]), gather)
        return halves[0] + halves[1]

    @torch.no_grad()
    def _remember(self, keys: Tensor, gather: Gather | None) -> None:
        """Put the keys of all processes in the place of the oldest."""
        assert self.queue is not None
        assert self.place is not None
        keys = keys if gather is None else gather(keys)[0]
        keys = keys[-len(self.queue) :].to(self.queue.dtype)
        places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys
        self.place.copy_((self.place + len(keys)) % len(self.queue))

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the copy after a step of the optimizer; ``momentum`` in [0, 1) is the share of it that stays."""
        follow(self.teacher["encoder"], self.encoder, momentum)
        follow(self.teacher["projector"], self.projector, momentum)
