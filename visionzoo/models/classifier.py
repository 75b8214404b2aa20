"""Image classifiers: a backbone with a linear head, under timm's keys for the same name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from visionzoo.backbones import create_backbone
from visionzoo.backbones.base import Backbone
from visionzoo.layers.graft import graft
from visionzoo.weights import install_load_hook, load_weights
from visionzoo.weights.local import local_source

if TYPE_CHECKING:
    _Base = Backbone
else:
    _Base = object


class Classifier(_Base):
    """A backbone that answers with logits: images (B, C, H, W) -> (B, num_classes).

    It is the backbone itself with its head filled, so ``forward_features``, ``forward_head``, ``reset_classifier``,
    ``num_features`` and all keys are those that timm's users know. Made by :func:`create_classifier`.
    """

    drop_rate: float
    _architecture: dict[str, Any]

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W) normalised images -> (B, num_classes) logits."""
        return self.forward_head(self.forward_features(images))

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, pooled_dim), what the head reads."""
        return self.forward_head(self.forward_features(images), pre_logits=True)

    @property
    def architecture(self) -> dict[str, Any]:
        """The keyword arguments of :func:`create_classifier` that rebuild this model, in JSON types."""
        return {**self._architecture, "num_classes": self.num_classes}

    def trunk_parameters(self) -> list[nn.Parameter]:
        """Parameters that do not belong to the head."""
        return [p for n, p in self.named_parameters() if not n.startswith(self.head_prefixes)]


def create_classifier(
    backbone: str,
    num_classes: int,
    *,
    weights: Any = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    drop_path: float = 0.0,
    drop_rate: float = 0.0,
    global_pool: str | None = None,
    in_chans_policy: str | None = None,
) -> Classifier:
    """Build a classifier.

    Args:
        backbone: a registered name or ``"timm/<name>"``.
        num_classes: K, at least 1.
        weights: None for random weights; otherwise a source for :func:`visionzoo.load_weights`, or ``embedded``
            for the digits that come with the package. A head for another number of classes, or none, leaves the new
            head random, with a warning; everything else must fit.
        image_size: pixels, one number or (height, width); None for the size the backbone was trained at.
        in_chans: channels of the images.
        drop_path: stochastic-depth rate of the last block.
        drop_rate: dropout before the head.
        global_pool: another pooling, ``"token"`` or ``"avg"``, where the backbone allows it.
        in_chans_policy: see :func:`visionzoo.load_weights`.

    Raises:
        ValueError: for an unknown backbone, a number of classes below 1, a rate outside [0, 1), or unfitting weights.
    """
    if num_classes < 1:
        raise ValueError(
            f"num_classes={num_classes} must be at least 1; for features without a head use create_backbone"
        )
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate={drop_rate} must be in [0, 1)")
    model = graft(create_backbone(backbone, image_size=image_size, in_chans=in_chans, drop_path=drop_path), Classifier)
    model.reset_classifier(num_classes, global_pool)
    _set_head_dropout(model, drop_rate)
    model.drop_rate = drop_rate
    model._architecture = {
        "backbone": backbone,
        "image_size": list(image_size) if isinstance(image_size, tuple) else image_size,
        "in_chans": in_chans,
        "drop_path": drop_path,
        "drop_rate": drop_rate,
        "global_pool": global_pool,
    }
    install_load_hook(model)
    if weights is not None:
        load_weights(model, local_source(weights, "classify"), in_chans_policy=in_chans_policy)
    return model


def head_dropout(model: nn.Module) -> nn.Module | None:
    """The module that drops features in front of the head.

    ``head_drop``, or ``head.drop`` where the head is a module of its own; the model itself where it calls ``F.dropout``
    (some of timm's); None where nothing does.
    """
    for owner in (model, getattr(model, "head", None)):
        for name in ("head_drop", "drop"):
            drop = getattr(owner, name, None)
            if isinstance(drop, nn.Dropout):
                return drop
    return model if hasattr(model, "drop_rate") else None


def _set_head_dropout(model: Classifier, rate: float) -> None:
    drop = head_dropout(model)
    if isinstance(drop, nn.Dropout):
        drop.p = rate
    elif drop is not None:
        model.drop_rate = rate
    elif rate:
        raise ValueError(f"{model.name} has no dropout before its head; use drop_rate=0")
