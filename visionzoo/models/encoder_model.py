"""A network around a backbone: what weights, training and exported models ask of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.layer_groups import inside
from visionzoo.types import Preprocess


class EncoderModel(nn.Module):
    """A backbone under ``encoder.*``, and anything beside it. A run of it starts any other task from its backbone.

    A subclass sets ``architecture``, the keyword arguments that rebuild it, in JSON types.

    Args:
        encoder: the backbone.
    """

    weights_family = "timm"  #: which foreign layouts ``load_weights`` tries
    head_prefixes: tuple[str, ...] = ()  #: keys that may keep their own values when other weights are loaded
    stem_key: str  #: the weight whose second axis is the channels of images
    num_classes = 0

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder: Any = encoder  # the contract does not list what capabilities add to it
        self.stem_key = f"encoder.{encoder.stem_key}"
        self.name = f"{type(self).__name__} of {encoder.name}"
        self.image_size, self.in_chans = encoder.image_size, encoder.in_chans
        self.architecture: dict[str, Any] = {}

    @property
    def preprocess(self) -> Preprocess:
        """How images become the encoder's input."""
        return self.encoder.preprocess

    @preprocess.setter
    def preprocess(self, spec: Preprocess) -> None:
        self.encoder.preprocess = spec

    def group_matcher(self, coarse: bool = False) -> Any:
        """timm's description of layer groups: the encoder's, and everything behind it as one."""
        return inside(self.encoder.group_matcher(coarse), "encoder.")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed: the encoder's tokens and position tables."""
        return {f"encoder.{n}" for n in self.encoder.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each of the encoder's blocks in the backward pass, to save memory."""
        self.encoder.set_grad_checkpointing(enable)

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample the encoder's tables to this model's size; see :meth:`Backbone.adapt_state_dict`."""
        own = {k.removeprefix("encoder."): v for k, v in state_dict.items() if k.startswith("encoder.")}
        own, notes = self.encoder.adapt_state_dict(own, stored_size)
        rest = {k: v for k, v in state_dict.items() if not k.startswith("encoder.")}
        return rest | {f"encoder.{k}": v for k, v in own.items()}, notes
