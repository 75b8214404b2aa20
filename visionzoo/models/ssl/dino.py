"""DINO (arXiv 2104.14294): a student says of every crop what its teacher, a moving average of it, says of another.

With iBOT's loss (2111.07832) it also says of patches that it does not see what the teacher, which sees them, says.

Legend: B images, D width, K prototypes, P patches of a view, M hidden patches of the two large views of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionzoo.backbones.base import Backbone
from visionzoo.losses.contrastive import Gather
from visionzoo.losses.self_supervised import (
    check_temperature,
    masked_patch_distillation,
    self_distillation,
    sharpened,
)
from visionzoo.metrics.representation import entropy_share
from visionzoo.models.masking import first_stage, norm_after_pool
from visionzoo.models.ssl.heads import PrototypeHead
from visionzoo.models.ssl.views import ViewLoss, ViewModel, pooled
from visionzoo.registry import require_capability
from visionzoo.types import LARGE_VIEWS


class Dino(ViewModel):
    """Student, teacher and centre. Made by :func:`visionzoo.models.ssl.create_ssl`.

    Args:
        encoder: the student's backbone; with ``patch_loss_weight`` one with the capability ``masked_image``.
        hidden: width of the head's hidden layers.
        out: K.
        temperature: the student's.
        patch_loss_weight: of iBOT's loss beside DINO's; 0 leaves it out.
        patch_out: K of a head of the patches' own; None shares that of the views.
    """

    evaluates_teacher = True
    centre: Tensor
    patch_centre: Tensor
    teacher_temperature = 0.04  #: it may change from step to step
    centre_momentum = 0.9  #: share of the centres that stays after a step, in [0, 1]

    def __init__(
        self,
        encoder: Backbone,
        *,
        hidden: int,
        out: int,
        temperature: float,
        patch_loss_weight: float = 0.0,
        patch_out: int | None = None,
    ) -> None:
        super().__init__(encoder)
        check_temperature("temperature", temperature)
        self.temperature, self.patch_loss_weight = temperature, patch_loss_weight
        self.projector = PrototypeHead(encoder.pooled_dim, out, hidden)
        self.register_buffer("centre", torch.zeros(out))
        if patch_loss_weight:
            self._hide_patches(encoder, hidden, out, patch_out)
        self.start_teacher()

    def _hide_patches(self, encoder: Backbone, hidden: int, out: int, patch_out: int | None) -> None:
        require_capability(encoder, "masked_image", "a loss of hidden patches (patch_loss_weight)")
        self._cell, width = first_stage(encoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))  # as iBOT's starts
        if patch_out is not None:
            self.patch_projector = PrototypeHead(encoder.grid_dim, patch_out, hidden)
            self.followed = (*self.followed, "patch_projector")
        elif encoder.grid_dim != encoder.pooled_dim:
            raise ValueError(
                f"{encoder.name} has {encoder.grid_dim} channels in a patch and {encoder.pooled_dim} in all, which one "
                "head cannot read; give patch_out, the prototypes of a head of the patches' own"
            )
        self.register_buffer("patch_centre", torch.zeros(patch_out or out))

    def mask_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the patches that are hidden one by one, of views of (H, W) pixels.

        Raises:
            ValueError: for a size that does not divide.
        """
        stride = self.encoder.stride
        if image_size[0] % stride or image_size[1] % stride:
            raise ValueError(
                f"patch_loss_weight={self.patch_loss_weight}: views of {image_size[0]}x{image_size[1]} pixels do not "
                f"divide into patches of {stride} pixels; use multiples of {stride}"
            )
        return image_size[0] // stride, image_size[1] // stride

    def loss(self, views: Sequence[Tensor], gather: Gather | None = None, hidden: Tensor | None = None) -> ViewLoss:
        """Normalised views (B, C, H, W) of each image, the two large ones first -> the loss, and the mean (K,) of what
        the teacher says; behind it, with iBOT's loss, that of what it says of patches.

        Args:
            views: those that the teacher sees are of one size.
            gather: not needed, images are not compared with each other.
            hidden: with iBOT's loss, (M,) int64, rising: the patches that the student does not see, as places in (2, B,
                rows, columns).

        Raises:
            ValueError: for fewer than two views, or no ``hidden`` where it is needed.
        """
        del gather
        if len(views) < LARGE_VIEWS:
            raise ValueError(f"{len(views)} views of each image; DINO needs two large ones")
        temperatures = {
            "student_temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
        }
        if not self.patch_loss_weight:
            student = [self.projector(x) for x in self.pooled(views)]
            teacher = self._teacher_says(views[:LARGE_VIEWS])
            loss = self_distillation(student, teacher, self.centre, **temperatures)
            return ViewLoss(loss, torch.cat(teacher).float().mean(0))
        if hidden is None:
            raise ValueError(
                f"patch_loss_weight={self.patch_loss_weight} needs to know which patches are hidden: "
                "visionzoo.types.ViewBatch.hidden, as visionzoo.data.ssl.SslData draws it"
            )
        if views[0].shape != views[1].shape:
            raise ValueError(
                f"the large views are {tuple(views[0].shape)} and {tuple(views[1].shape)}; with patch_loss_weight they "
                "must be of one size"
            )
        large = torch.cat(list(views[:LARGE_VIEWS]))
        rows, columns = self.mask_grid((large.shape[2], large.shape[3]))
        student, patches = self._student_says_masked(large, hidden, rows, columns)
        student += [self.projector(x) for x in self.pooled(views[LARGE_VIEWS:])]
        teacher, target, mean = self._teacher_says_of_patches(large, hidden)
        of_views = self_distillation(student, teacher, self.centre, **temperatures)
        image = hidden // (rows * columns)
        of_patches = masked_patch_distillation(patches, target, image, len(large), self.patch_centre, **temperatures)
        means = torch.cat((torch.cat(teacher).float().mean(0), mean.float()))
        parts = {"view_loss": of_views, "patch_loss": of_patches}
        return ViewLoss(of_views + self.patch_loss_weight * of_patches, means, parts)

    def _student_says_masked(
        self, large: Tensor, hidden: Tensor, rows: int, columns: int
    ) -> tuple[list[Tensor], Tensor]:
        """Of masked views (2B, C, H, W): (B, K) of each, and (M, K) of their hidden patches."""
        encoder = self.encoder
        mask = torch.zeros(len(large) * rows * columns, dtype=torch.bool, device=large.device)
        cells = mask.index_fill_(0, hidden, True).view(len(large), rows, columns)
        repeat = encoder.stride // self._cell
        fine = cells.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        features = encoder.forward_features(large, mask=fine, mask_token=self.mask_token)
        norm = norm_after_pool(encoder)
        grid, _ = encoder.split(features if norm is None else norm(features), (large.shape[2], large.shape[3]))
        said = self.projector(encoder.pooled_features(features)).chunk(LARGE_VIEWS)
        return list(said), self._patch_head(self)(_rows(grid).index_select(0, hidden))

    @staticmethod
    def _patch_head(of: nn.Module) -> Any:
        return getattr(of, "patch_projector", None) or of.projector

    @torch.no_grad()
    def _teacher_says(self, views: Sequence[Tensor]) -> list[Tensor]:
        assert self.teacher is not None
        return [self.teacher["projector"](x) for x in pooled(self.teacher["encoder"], views)]

    @torch.no_grad()
    def _teacher_says_of_patches(self, large: Tensor, hidden: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of whole views (2B, C, H, W): (B, K) of each, (M, K) of the patches that are hidden from the student, and the
        mean (K,) over all patches, as in iBOT's code."""
        assert self.teacher is not None
        encoder: Any = self.teacher["encoder"]
        features = encoder(large)
        grid, norm = features.grid, norm_after_pool(encoder)
        rows = _rows(grid) if norm is None else norm(_rows(grid))
        said = self.teacher["projector"](features.pooled).chunk(LARGE_VIEWS)
        head = self._patch_head(self.teacher)
        points = head.unit(rows)  # of all; few of them are compared with all prototypes
        return list(said), head.compare(points.index_select(0, hidden)), head.compare(points.mean(0))

    @torch.no_grad()
    def remember(self, seen: Tensor, gather: Gather | None = None) -> None:
        """Move the centres towards the means (K,) of what the teacher said (equation 4), in all processes; not after a
        step that was left out."""
        mean = seen if gather is None else gather(seen[None])[0].mean(0)
        centres = [self.centre, self.patch_centre] if self.patch_loss_weight else [self.centre]
        fine = torch.isfinite(mean).all()
        for centre, own in zip(centres, mean.split([len(c) for c in centres]), strict=True):
            centre.lerp_(torch.where(fine, own.to(centre), centre), 1 - self.centre_momentum)

    def freeze_prototypes(self) -> None:
        """Forget the gradient of the prototypes, of views and patches: they stay as they were drawn."""
        for name in self.followed[1:]:
            head: Any = self.get_submodule(name)
            head.prototypes.grad = None

    def signs(self, views: Sequence[Tensor]) -> dict[str, float]:
        """How sure the teacher is of an image, and how evenly images share the prototypes, for views (B, C, H, W)."""
        said = sharpened(torch.cat(self._teacher_says(views[:LARGE_VIEWS])), self.centre, self.teacher_temperature)
        return {"teacher_entropy": entropy_share(said), "prototype_entropy": entropy_share(said.mean(0, keepdim=True))}


def _rows(grid: Tensor) -> Tensor:
    """(B, D, h, w) -> (B * h * w, D), in raster order."""
    return grid.flatten(2).transpose(1, 2).flatten(0, 1)
