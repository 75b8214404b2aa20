"""How to train, read off the number of images, classes and pixels; ``docs/recipes.md`` has the rules' reasons."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from visionzoo.processors import usable_cores

Method = Literal["lora", "full", "scratch"]

#: What training costs of an image, in forward passes: backward through activations, and through weights as well.
PASSES: dict[Method, float] = {"lora": 2.6, "full": 3.2, "scratch": 3.2}
#: Epochs without which a method is not begun: it would end before it is better than where it starts.
LEAST_EPOCHS: dict[Method, int] = {"lora": 2, "full": 2, "scratch": 5}
#: Epochs that a method gets before others are given time: short runs of several are worth less than one that is not.
ENOUGH_EPOCHS: dict[Method, int] = {"lora": 8, "full": 8, "scratch": 5}
#: Steps from which a moving average of the weights, over some hundred of them, is worth more than the last ones.
_AVERAGED = 500
#: Pixels (the median of the shorter edge) up to which an image is small: a digit, an icon, CIFAR.
SMALL = 64


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What recipes are read off."""

    images: int  #: to train on
    classes: int
    pixels: int  #: median of the shorter edge
    mirrors: bool = True  #: whether a mirrored image still shows its class

    @property
    def small(self) -> bool:
        """Whether images are digits, icons and the like."""
        return self.pixels <= SMALL


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of ``train.py classify fit``."""

    method: Method
    epochs: int
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``Recipe(**values)`` is the way back."""
        return asdict(self)

    @property
    def in_words(self) -> str:
        """Such as ``"6 epochs, lr 0.0003"``."""
        return f"{self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}, lr {self.model['lr']:g}"


def wanted_epochs(method: Method, images: int) -> int:
    """Epochs of an unhurried run: many for few images, since what is learned goes with the steps taken."""
    if method == "scratch":
        return min(200, max(20, round(100_000 / images)))
    return min(40, max(4, round(16_000 / images)))


def batch_size(images: int) -> int:
    """Images in a step: 32, fewer where an epoch would have fewer than four steps."""
    return max(2, min(32, images // 4))


def reading_processes() -> int:
    """Processes that read images: the cores but one, at least one and at most four."""
    return max(1, min(4, usable_cores() - 1))


def recipe(method: Method, facts: DataFacts, epochs: int, *, precision: str, workers: int) -> Recipe:
    """The options of a method.

    Args:
        method: ``lora`` and ``full`` begin with the linear head that is there (arXiv 2202.10054), ``scratch`` with
            nothing.
        facts: of the data.
        epochs: how many there is time for.
        precision: what ``--trainer.precision`` takes.
        workers: processes that read images.
    """
    size = batch_size(facts.images)
    model: dict[str, Any] = {
        "weight_decay": 0.05,
        "warmup_epochs": min(1.0, 0.1 * epochs),
        "label_smoothing": 0.1,
    }
    if method == "lora":
        model |= {"finetune": "lora", "lora_rank": 8, "lora_alpha": 16.0, "lr": 5e-4}
    elif method == "full":
        model |= {"finetune": "full", "lr": 1e-4, "layer_decay": 0.75, "drop_path": 0.1 if epochs >= 10 else 0.0}
    else:
        model |= {"lr": 2e-3, "weight_decay": 0.1, "mixup": 0.2}
        if epochs * facts.images // size >= _AVERAGED:
            model["ema_decay"] = 0.99
    return Recipe(
        method=method,
        epochs=epochs,
        model=model,
        data={"batch_size": size, "num_workers": workers, **_views(facts)},
        trainer={"max_epochs": epochs, "precision": precision, "gradient_clip_val": 1.0},
    )


def _views(facts: DataFacts) -> dict[str, Any]:
    """How a training image varies: a small one is all object, so that little is cut off."""
    flip = 0.5 if facts.mirrors else 0.0
    if facts.small:
        return {"crop_scale": [0.75, 1.0], "crop_ratio": [0.9, 1.1], "hflip": flip, "policy": "none"}
    return {"crop_scale": [0.4, 1.0], "hflip": flip, "policy": "none", "color_jitter": 0.2}


def scratch_network(pixels: int) -> tuple[str, int]:
    """(backbone, image size) to train from nothing within minutes: some 8 x 8 to 16 x 16 patches of 4 pixels."""
    return "vit_nano_patch4_32", next((size for size in (16, 32, 48) if pixels <= 1.25 * size), 64)


def minutes(method: Method, epochs: int, images: int, held: int, images_per_second: float) -> float:
    """What a run takes on this machine: training and one validation for each epoch.

    Args:
        method: see :func:`recipe`.
        epochs: of the run.
        images, held: trained on and validated on in each.
        images_per_second: of the forward pass, reading included.
    """
    return epochs * (images * PASSES[method] + held) / max(images_per_second, 1e-9) / 60


def affordable_epochs(method: Method, most: float, images: int, held: int, images_per_second: float) -> int:
    """Epochs for ``most`` minutes, up to what is wanted; 0 where they are fewer than make sense."""
    one = minutes(method, 1, images, held, images_per_second)
    epochs = min(wanted_epochs(method, images), math.floor(most / one))
    return epochs if epochs >= LEAST_EPOCHS[method] else 0
