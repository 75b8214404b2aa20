"""Networks from pixels to answers: what of a model's work can be in a graph is in it.

Pixels are normalised, and answers given, in float32; a network in between may be in another precision.

Legend: B batch, C channels, (H, W) pixels, K classes, D width, P prefix tokens, E embedding, L context length.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.backbones.base import Backbone
from visionzoo.inference.device import as_input
from visionzoo.models.classifier import Classifier
from visionzoo.models.clip import Clip
from visionzoo.models.preprocess import Normalize
from visionzoo.types import Preprocess


class ClassifierGraph(nn.Module):
    """(B, C, H, W) uint8 -> probabilities (B, K), logits (B, K), features (B, D).

    Args:
        model: of ``create_classifier``'s kind.
        preprocess: the model's.
        multi_label: whether each class has a probability of its own.
        temperature: that logits are divided by before the softmax.
    """

    def __init__(self, model: Any, preprocess: Preprocess, *, multi_label: bool, temperature: float) -> None:
        super().__init__()
        self.normalize, self.model = Normalize(preprocess), model
        self.multi_label, self.temperature = multi_label, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the class says."""
        x = self.model.forward_features(as_input(self.normalize(images), self.model))
        logits = self.model.forward_head(x).float()
        probabilities = logits.sigmoid() if self.multi_label else (logits / self.temperature).softmax(1)
        return probabilities, logits, self.model.forward_head(x, pre_logits=True).float()


class FeaturesGraph(nn.Module):
    """(B, C, H, W) uint8 -> pooled (B, D), grid (B, D', h, w) and, where there are some, prefix (B, P, D')."""

    def __init__(self, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__()
        self.normalize, self.backbone = Normalize(preprocess), backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        backbone = self.backbone
        x = as_input(self.normalize(images), backbone)
        # a classifier is its backbone with another answer
        features = super(Classifier, backbone).forward(x) if isinstance(backbone, Classifier) else backbone(x)
        found = features.pooled.float(), features.grid.float(), features.prefix.float()
        return found if backbone.num_prefix_tokens else found[:2]


class PyramidGraph(nn.Module):
    """(B, C, H, W) uint8 -> the maps of a backbone's pyramid, finest first."""

    def __init__(self, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__()
        self.normalize, self.backbone = Normalize(preprocess), backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        return tuple(x.float() for x in self.backbone.pyramid(as_input(self.normalize(images), self.backbone)))


class ImageEmbeddingGraph(nn.Module):
    """(B, C, H, W) uint8 -> (B, E) of length one."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.normalize, self.visual = Normalize(clip.preprocess), clip.visual

    def forward(self, images: Tensor) -> Tensor:
        """As the class says."""
        return F.normalize(self.visual(as_input(self.normalize(images), self.visual)).float(), dim=-1)


class TextEmbeddingGraph(nn.Module):
    """(B, L) int64 token ids -> (B, E) of length one."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.text = clip.text

    def forward(self, tokens: Tensor) -> Tensor:
        """As the class says."""
        return F.normalize(self.text(tokens).float(), dim=-1)


class ZeroShotGraph(nn.Module):
    """(B, C, H, W) uint8 -> probabilities (B, K), logits (B, K), embeddings (B, E) of length one.

    Args:
        clip: the model.
        weights: (K, E), what images are compared with for each label.
        scale: of the products.
        bias: (K,) added to them, or 0.
        multi_label: whether each label has a probability of its own.
        temperature: that logits are divided by before the softmax.
    """

    weights: Tensor

    def __init__(
        self, clip: Clip, weights: Tensor, scale: float, bias: float, *, multi_label: bool, temperature: float
    ) -> None:
        super().__init__()
        self.image = ImageEmbeddingGraph(clip)
        self.register_buffer("weights", weights.T.contiguous())
        self.scale, self.bias = scale, bias
        self.multi_label, self.temperature = multi_label, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the class says."""
        embeddings = self.image(images)
        logits = self.scale * (embeddings @ self.weights) + self.bias
        probabilities = logits.sigmoid() if self.multi_label else (logits / self.temperature).softmax(1)
        return probabilities, logits, embeddings
