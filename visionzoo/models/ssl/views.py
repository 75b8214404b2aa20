"""A backbone that sees several views of each image, of several sizes.

Legend: B images, (H, W) pixels of a view, D width of the pooled features.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionzoo.backbones.base import Backbone
from visionzoo.losses.contrastive import Gather
from visionzoo.models.encoder_model import EncoderModel

_TEACHER = "teacher."


class ViewLoss(NamedTuple):
    """What a method makes of the views of a batch."""

    loss: Tensor  #: float32 scalar
    seen: Tensor | None = None  #: what the method remembers of the batch, once the optimizer has stepped; no gradient
    parts: Mapping[str, Tensor] = MappingProxyType({})  #: what the loss is made of, by name, where it is several


class ViewModel(EncoderModel):
    """A backbone under ``encoder.*`` with heads beside it, and where the method has one, a teacher: a copy of the
    backbone and projectors that moves slowly after them and gets no gradient.

    A subclass implements :meth:`loss`, :meth:`signs` and, where it keeps something of a batch, :meth:`remember`. One
    step is ``loss``, backward, the optimizer's step, then ``remember`` and ``follow``.
    """

    projector: nn.Module
    teacher: nn.ModuleDict | None
    evaluates_teacher = False  #: whether the teacher is what a run hands on
    followed: tuple[str, ...] = ("encoder", "projector")  #: what the teacher has a copy of

    def __init__(self, encoder: Backbone) -> None:
        super().__init__(encoder)
        self.teacher = None

    @property
    def evaluated(self) -> Backbone:
        """The backbone that a run hands on."""
        backbone: Any = self.teacher["encoder"] if self.evaluates_teacher and self.teacher is not None else self.encoder
        return backbone

    def loss(self, views: Sequence[Tensor], gather: Gather | None = None, hidden: Tensor | None = None) -> ViewLoss:
        """Normalised views (B, C, H, W) of each image, of any sizes -> the loss.

        Args:
            views: large ones first.
            gather: with several processes, what brings their features together.
            hidden: (M,) places of patches that the student does not see, see :class:`visionzoo.types.ViewBatch`; for
                methods that learn from these.
        """
        del views, gather, hidden
        raise AssertionError(f"{type(self).__name__} must implement loss")

    def remember(self, seen: Tensor, gather: Gather | None = None) -> None:
        """Take in what :attr:`ViewLoss.seen` of a batch was, of all processes. Nothing, where nothing is kept."""

    def signs(self, views: Sequence[Tensor]) -> dict[str, float]:
        """What the heads say of two normalised views (B, C, H, W) of each image, in eval mode: see
        :func:`visionzoo.metrics.collapse.diagnose`."""
        del views
        raise AssertionError(f"{type(self).__name__} must implement signs")

    def exported(self) -> EncoderModel:
        """The network that is written: the evaluated backbone under ``encoder.*`` and the heads, without a copy of
        both. It shares its tensors with this one."""
        model = EncoderModel(self.evaluated)
        model.architecture = self.architecture
        source = self.teacher if self.evaluates_teacher and self.teacher is not None else self._modules
        for name, module in source.items():
            if name not in ("encoder", "teacher") and module is not None:
                model.add_module(name, module)
        for name, parameter in self._parameters.items():
            model.register_parameter(name, parameter)
        for name, buffer in self._buffers.items():
            model.register_buffer(name, buffer)
        return model

    def pooled(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Normalised views (B, C, H, W) of any sizes -> (B, D) for each; views of one size go through as one batch."""
        return pooled(self.encoder, views)

    def start_teacher(self) -> None:
        """Make the copy that moves after the backbone and the projectors, as they are now."""
        student = nn.ModuleDict({name: self.get_submodule(name) for name in self.followed})
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher's parameters after a step of the optimizer; its running statistics are its own.

        Args:
            momentum: the share of the teacher that stays, in [0, 1].
        """
        if self.teacher is None:
            return
        student = [p.detach() for name in self.followed for p in self.get_submodule(name).parameters()]
        torch._foreach_lerp_(list(self.teacher.parameters()), student, 1 - momentum)

    def train(self, mode: bool = True) -> ViewModel:
        """As in torch, but the teacher drops nothing; its BatchNorm takes statistics, as in the papers' code."""
        super().train(mode)
        if self.teacher is not None:
            for module in self.teacher.modules():
                module.training = mode and isinstance(module, _BatchNorm)
        return self

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Also start the teacher from the student, in weights that have none, as exported ones."""
        state, notes = super().adapt_state_dict(state_dict, stored_size)
        if self.teacher is not None and not any(k.startswith(_TEACHER) for k in state):
            state |= {_TEACHER + k: state[k] for k in self.teacher.state_dict(keep_vars=True) if k in state}
        return state, notes


def pooled(encoder: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """(B, C, H, W) views of any sizes -> (B, D) for each, in their order."""
    features: dict[int, Tensor] = {}
    sizes = {tuple(view.shape[-2:]): None for view in views}
    for size in sizes:
        places = [i for i, view in enumerate(views) if tuple(view.shape[-2:]) == size]
        whole = encoder(torch.cat([views[i] for i in places])).pooled
        features |= dict(zip(places, whole.split([len(views[i]) for i in places]), strict=True))
    return [features[i] for i in range(len(views))]


def check_pair(views: Sequence[Tensor], method: str) -> None:
    """Raises ValueError for another number of views than two."""
    if len(views) != 2:
        raise ValueError(f"{len(views)} views of each image; {method} compares two")
