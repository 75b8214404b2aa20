"""The product's classify task, with the optimizers and the loss that published recipes ask for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from comparison.models import use_channels_last
from comparison.recipes import Loss, Optimizer
from visionzoo.losses.classification import binary_cross_entropy
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.mixing import soft_targets
from visionzoo.types import Preprocess

#: Shares of a mixed label above this count as present (arXiv 2110.00476, section 3).
PRESENT = 0.2


def equal_preprocess(image_size: int) -> Preprocess:
    """The same pixels and the same normalisation for every model."""
    return Preprocess(image_size=(image_size, image_size))


class RecipeClassify(ClassifyTask):
    """Classify from scratch by a recipe.

    Args:
        image_size: edge of the square input in pixels.
        optimizer: adamw, lamb, or sgd (momentum 0.9, Nesterov).
        loss: cross_entropy, or bce, where every label of a mixed image counts as present.
        channels_last: the memory format of images and weights.
        kwargs: options of :class:`visionzoo.tasks.classify.ClassifyTask`.
    """

    def __init__(
        self,
        *,
        image_size: int,
        optimizer: Optimizer = "adamw",
        loss: Loss = "cross_entropy",
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, optimizer=optimizer, **kwargs)
        self.loss_name = loss
        self.model.preprocess = equal_preprocess(image_size)  # type: ignore[assignment]
        self.use_model(self.model, self.in_chans)
        if channels_last:
            use_channels_last(self.model)

    def _loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        if self.loss_name == "cross_entropy":
            return super()._loss(logits, targets, smoothing)
        present = (soft_targets(targets, self.num_classes) > PRESENT).float()
        return binary_cross_entropy(logits, present, label_smoothing=smoothing)
