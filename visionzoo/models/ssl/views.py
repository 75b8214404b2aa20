"""A backbone that sees several views of each image, of several sizes.

Legend: B batch, (H, W) pixels of a view, D width of the pooled features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionzoo.models.encoder_model import EncoderModel


class ViewModel(EncoderModel):
    """A backbone under ``encoder.*`` with heads beside it; what a run hands on is the backbone."""

    def pooled(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Normalised views (B, C, H, W) of any sizes -> (B, D) for each; views of one size go through as one batch."""
        return pooled(self.encoder, views)


def pooled(encoder: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """(B, C, H, W) views of any sizes -> (B, D) for each, in their order."""
    features: dict[int, Tensor] = {}
    sizes = {tuple(view.shape[-2:]): None for view in views}
    for size in sizes:
        places = [i for i, view in enumerate(views) if tuple(view.shape[-2:]) == size]
        whole = encoder(torch.cat([views[i] for i in places])).pooled
        features |= dict(zip(places, whole.split([len(views[i]) for i in places]), strict=True))
    return [features[i] for i in range(len(views))]


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy that no gradient changes."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the parameters of ``teacher`` towards those of ``student``; buffers are the teacher's own.

    Args:
        teacher, student: of one architecture.
        momentum: share of the teacher that stays, in [0, 1].
    """
    own = list(teacher.parameters())
    torch._foreach_lerp_(own, [p.detach() for p in student.parameters()], 1 - momentum)
