"""What timm's tools ask of a model, answered by the native backbones under timm's names and with timm's numbers.

``timm/<name>`` backbones have timm's own methods; only their ``pretrained_cfg`` is made here, so that it follows the
weights they hold.

Legend: B batch, C channels, (H, W) pixels, (h, w) token grid, N = h * w patch tokens, P prefix tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from visionzoo.backbones.base import Backbone
from visionzoo.weights.preprocessing import RESIZE_MODES

if TYPE_CHECKING:
    _Base = Backbone
else:
    _Base = object

#: Of the layers whose output is wanted: the last n, these (negative ones count from the end), or None for all.
Indices = int | Sequence[int] | None


class TimmMixin(_Base):
    """Mixin of native backbones; each brings ``feature_info``, ``forward_intermediates`` and ``set_input_size``."""

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What ``timm.data.resolve_model_data_config`` reads: this model's preprocessing, in timm's words."""
        return pretrained_cfg(self)

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of :attr:`pretrained_cfg`."""
        return self.pretrained_cfg

    def _checked_input_size(self, image_size: int | tuple[int, int] | None, other: dict[str, Any]) -> tuple[int, int]:
        """The (H, W) that ``set_input_size`` is asked for; what the model says of itself follows."""
        if given := {k: v for k, v in other.items() if v is not None}:
            raise ValueError(
                f"set_input_size({', '.join(f'{k}={v}' for k, v in given.items())}): {self.name} changes its image "
                "size alone; patches and windows are part of its weights"
            )
        if image_size is None:
            return self.image_size
        size = (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))
        if min(size) < self.stride:
            raise ValueError(f"img_size={size} is smaller than the stride of {self.name}, {self.stride} pixels")
        if isinstance(self.describe, partial):  # made by create_backbone: name, size, channels
            self.describe = partial(self.describe.func, self.name, size, self.in_chans)
        return size


def feature_take_indices(count: int, indices: Indices) -> list[int]:
    """The places that ``indices`` means among ``count`` layers, as timm reads them, in the order of the layers.

    Raises:
        ValueError: for a layer that is not there.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise ValueError(f"indices={indices} asks for the last {indices} of {count} layers; give 1 to {count}")
        return list(range(count - indices, count))
    if wrong := [i for i in indices if not -count <= i < count]:
        raise ValueError(f"indices={list(indices)}: there is no layer {wrong[0]} among {count}")
    return sorted({i % count for i in indices})


def pretrained_cfg(model: Backbone) -> dict[str, Any]:
    """A model's preprocessing and head in timm's words.

    timm divides pixels by 255 before mean and standard deviation, whatever ``value_scale`` is here.
    """
    spec = model.preprocess
    factor = spec.value_scale / 255.0
    return {
        "architecture": model.name.removeprefix("timm/"),
        "input_size": (model.in_chans, *spec.image_size),
        "fixed_input_size": "any_size" not in model.capabilities,
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": {ours: theirs for theirs, ours in RESIZE_MODES.items()}[spec.resize_mode],
        "mean": tuple(m * factor for m in spec.mean) if factor != 1 else spec.mean,
        "std": tuple(s * factor for s in spec.std) if factor != 1 else spec.std,
        "num_classes": model.num_classes,
        "first_conv": model.stem_key.removesuffix(".weight"),
        "classifier": model.head_prefixes[0].removesuffix("."),
    }


def nchw(tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """(B, N, D) -> (B, D, h, w), contiguous as timm's."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid_size).contiguous()
