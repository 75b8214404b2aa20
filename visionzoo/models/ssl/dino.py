"""DINO (arXiv 2104.14294): a student says of every crop what its teacher, a moving average of it, says of another.

Legend: B images, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionzoo.backbones.base import Backbone
from visionzoo.losses.contrastive import Gather
from visionzoo.losses.self_supervised import check_temperature, self_distillation
from visionzoo.models.ssl.heads import PrototypeHead
from visionzoo.models.ssl.views import ViewModel, follow, momentum_copy, pooled


class Dino(ViewModel):
    """Student, teacher and centre. Made by :func:`visionzoo.models.ssl.create_ssl`.

    Args:
        encoder: the student's backbone.
        hidden: width of the head's hidden layers.
        out: K.
        temperature: the student's.
    """

    centre: Tensor

    def __init__(self, encoder: Backbone, *, hidden: int, out: int, temperature: float) -> None:
        super().__init__(encoder)
        check_temperature("temperature", temperature)
        self.temperature = temperature
        self.projector = PrototypeHead(encoder.pooled_dim, out, hidden)
        self.teacher = momentum_copy(nn.ModuleDict({"encoder": encoder, "projector": self.projector}))
        self.register_buffer("centre", torch.zeros(out))

    def train(self, mode: bool = True) -> Dino:
        """As in torch, but the teacher drops nothing."""
        super().train(mode)
        self.teacher.eval()
        return self

    def outputs(self, views: Sequence[Tensor], large: int) -> tuple[list[Tensor], list[Tensor]]:
        """What the student says of all normalised views, and the teacher of the first ``large``: (B, K) each."""
        student = [self.projector(x) for x in self.pooled(views)]
        with torch.no_grad():
            teacher = [self.teacher["projector"](x) for x in pooled(self.teacher["encoder"], views[:large])]
        return student, teacher

    def distil(self, student: Sequence[Tensor], teacher: Sequence[Tensor], teacher_temperature: float) -> Tensor:
        """The loss of :meth:`outputs`, a float32 scalar."""
        return self_distillation(
            student,
            teacher,
            self.centre,
            student_temperature=self.temperature,
            teacher_temperature=teacher_temperature,
        )

    @torch.no_grad()
    def move_centre(self, teacher: Sequence[Tensor], momentum: float, gather: Gather | None = None) -> None:
        """Move the centre towards the mean of what the teacher said (equation 4), of all processes."""
        mean = torch.cat(list(teacher)).float().mean(0)
        if gather is not None:
            mean = gather(mean[None])[0].mean(0)
        self.centre.lerp_(mean, 1 - momentum)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher after a step of the optimizer; ``momentum`` in [0, 1) is the share of it that stays."""
        follow(self.teacher["encoder"], self.encoder, momentum)
        follow(self.teacher["projector"], self.projector, momentum)
