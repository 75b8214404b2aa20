"""What is trained with what: one recipe that is equal for all, and each family's own as it was published.

A published recipe is scaled to the budget: the share of warm-up stays, and the learning rate follows the batch,
linearly for SGD (arXiv 1706.02677) and with the square root for adaptive optimizers (arXiv 2205.10287). Regularisation
keeps its published strength. What this product does not have is named in ``left_out``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

Optimizer = Literal["adamw", "lamb", "sgd"]
Loss = Literal["cross_entropy", "bce"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; the fields are options of the classify task, of its data and of the trainer."""

    source: str = "declared"
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3  #: peak, for ``batch`` images a step
    batch: int | None = None  #: that lr was published for; None takes lr as it is
    weight_decay: float = 0.05
    warmup: float = 0.05  #: share of the steps
    clip: float | None = 1.0  #: largest norm of the gradient
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    crop: Literal["random_resized", "pad", "resize"] = "random_resized"
    crop_scale: tuple[float, float] = (0.35, 1.0)
    hflip: float = 0.5
    policy: Literal["none", "randaugment", "three_augment"] = "none"
    magnitude: float = 7.0
    color_jitter: float = 0.0
    erasing: float = 0.0
    left_out: str = ""  #: of the published recipe

    def scaled_lr(self, batch: int) -> float:
        """The peak learning rate for ``batch`` images a step."""
        if self.batch is None:
            return self.lr
        ratio = batch / self.batch
        return self.lr * (ratio if self.optimizer == "sgd" else math.sqrt(ratio))

    def warmup_steps(self, steps: int) -> int:
        """Steps of linear warm-up, at least 1 where there is any, and never all."""
        return min(max(1, round(self.warmup * steps)), steps - 1) if self.warmup else 0


_IMAGENET = Recipe(crop_scale=(0.08, 1.0), clip=None)
_MIXED = replace(_IMAGENET, mixup=0.8, cutmix=1.0, policy="randaugment", magnitude=9.0, erasing=0.25)

PUBLISHED: dict[str, Recipe] = {
    "resnet on CIFAR": replace(
        _IMAGENET,
        source="arXiv 1512.03385, section 4.2",
        optimizer="sgd", lr=0.1, batch=128, weight_decay=1e-4, warmup=0.0, label_smoothing=0.0, crop="pad",
        left_out="steps of the learning rate (a cosine here), plain momentum (Nesterov's here)",
    ),
    "resnet strikes back A3": replace(
        _IMAGENET,
        source="arXiv 2110.00476, table 2, A3",
        optimizer="lamb", lr=8e-3, batch=2048, weight_decay=0.02, warmup=5 / 100,
        loss="bce", label_smoothing=0.0, mixup=0.1, cutmix=1.0, policy="randaugment", magnitude=6.0,
        left_out="training at 160 and testing at 224 pixels, test crop 0.95",
    ),
    "bag of tricks": replace(
        _IMAGENET,
        source="arXiv 1812.01187, sections 2 to 5",
        optimizer="sgd", lr=0.1, batch=256, weight_decay=1e-4, warmup=5 / 200,
        label_smoothing=0.1, mixup=0.2, color_jitter=0.4,
        left_out="PCA noise, hue jitter, distillation, zero gamma unless the model has it",
    ),
    "convnext": replace(
        _MIXED,
        source="arXiv 2201.03545, table 5, ConvNeXt-T",
        optimizer="adamw", lr=4e-3, batch=4096, weight_decay=0.05, warmup=20 / 300,
        drop_path=0.1, left_out="moving average of the weights",
    ),
    "deit": replace(
        _MIXED,
        source="arXiv 2012.12877, table 9",
        optimizer="adamw", lr=1e-3, batch=1024, weight_decay=0.05, warmup=5 / 300,
        drop_path=0.1, left_out="repeated augmentation, distillation",
    ),
    "deit III": replace(
        _IMAGENET,
        source="arXiv 2204.07118, table 1",
        optimizer="lamb", lr=3e-3, batch=2048, weight_decay=0.02, warmup=5 / 400, clip=1.0,
        loss="bce", label_smoothing=0.0, mixup=0.8, cutmix=1.0, drop_path=0.05, policy="three_augment",
        color_jitter=0.3, left_out="repeated augmentation",
    ),
    "swin": replace(
        _MIXED,
        source="arXiv 2103.14030, appendix A2.1, Swin-T",
        optimizer="adamw", lr=1e-3, batch=1024, weight_decay=0.05, warmup=20 / 300, clip=1.0,
        drop_path=0.2,
    ),
    "compact transformer": replace(
        _MIXED,
        source="arXiv 2104.05704 and its code, configs/pretrained/cct_7-3x1_cifar10_300epochs.yml",
        optimizer="adamw", lr=5.5e-4, batch=128, weight_decay=0.06, warmup=10 / 300, crop_scale=(0.8, 1.0),
        erasing=0.0, left_out="no mixing after epoch 175 of 300",
    ),
}  # fmt: skip

_FAMILIES = (
    (r"resnet_pilot", "resnet on CIFAR"),
    (r"cct", "compact transformer"),
    (r"(nf_)?(se|ecs|eca|sk|gc)?res(net|next|nest)|wide_resnet", "resnet strikes back A3"),
    (r"convnext", "convnext"),
    (r"deit3", "deit III"),
    (r"swin", "swin"),
)


def published(model: str, kind: str) -> str:
    """The key in :data:`PUBLISHED` for a model.

    Args:
        model: its name, ``timm/`` or not.
        kind: of :data:`comparison.models.KINDS`, which decides where the family is not in the table: bag of tricks for
            a CNN (the paper trains MobileNet with it too), DeiT for the others.
    """
    bare = model.removeprefix("timm/")
    for pattern, key in _FAMILIES:
        if re.match(pattern, bare):
            return key
    return "bag of tricks" if kind == "CNN" else "deit"
