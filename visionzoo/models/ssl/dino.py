"""DINO (arXiv 2104.14294): a student says of every crop what its teacher, a moving average of it, says of another.

Legend: B images, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visionzoo.backbones.base import Backbone
from visionzoo.losses.contrastive import Gather
from visionzoo.losses.self_supervised import check_temperature, self_distillation, sharpened
from visionzoo.metrics.representation import entropy_share
from visionzoo.models.ssl.heads import PrototypeHead
from visionzoo.models.ssl.views import ViewLoss, ViewModel, pooled

LARGE = 2  #: views that the teacher sees


class Dino(ViewModel):
    """Student, teacher and centre. Made by :func:`visionzoo.models.ssl.create_ssl`.

    Args:
        encoder: the student's backbone.
        hidden: width of the head's hidden layers.
        out: K.
        temperature: the student's.
    """

    evaluates_teacher = True
    centre: Tensor
    teacher_temperature = 0.04  #: it may change from step to step
    centre_momentum = 0.9  #: share of the centre that stays after a step, in [0, 1]

    def __init__(self, encoder: Backbone, *, hidden: int, out: int, temperature: float) -> None:
        super().__init__(encoder)
        check_temperature("temperature", temperature)
        self.temperature = temperature
        self.projector = PrototypeHead(encoder.pooled_dim, out, hidden)
        self.start_teacher()
        self.register_buffer("centre", torch.zeros(out))

    def loss(self, views: Sequence[Tensor], gather: Gather | None = None) -> ViewLoss:
        """Normalised views (B, C, H, W) of each image, the two large ones first -> the loss, and the mean (K,) of what
        the teacher says.

        Raises ValueError for fewer than two views.
        """
        del gather  # images are not compared with each other
        if len(views) < LARGE:
            raise ValueError(f"{len(views)} views of each image; DINO needs two large ones")
        student = [self.projector(x) for x in self.pooled(views)]
        teacher = self._teacher_says(views[:LARGE])
        loss = self_distillation(
            student,
            teacher,
            self.centre,
            student_temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
        )
        return ViewLoss(loss, torch.cat(teacher).float().mean(0))

    @torch.no_grad()
    def _teacher_says(self, views: Sequence[Tensor]) -> list[Tensor]:
        assert self.teacher is not None
        return [self.teacher["projector"](x) for x in pooled(self.teacher["encoder"], views)]

    @torch.no_grad()
    def remember(self, seen: Tensor, gather: Gather | None = None) -> None:
        """Move the centre towards the mean (K,) of what the teacher said (equation 4), in all processes; not after a
        step that was left out."""
        mean = seen if gather is None else gather(seen[None])[0].mean(0)
        mean = torch.where(torch.isfinite(mean).all(), mean.to(self.centre), self.centre)
        self.centre.lerp_(mean, 1 - self.centre_momentum)

    def signs(self, views: Sequence[Tensor]) -> dict[str, float]:
        """How sure the teacher is of an image, and how evenly images share the prototypes, for views (B, C, H, W)."""
        said = sharpened(torch.cat(self._teacher_says(views[:LARGE])), self.centre, self.teacher_temperature)
        return {"teacher_entropy": entropy_share(said), "prototype_entropy": entropy_share(said.mean(0, keepdim=True))}
