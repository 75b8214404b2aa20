"""Between a model and the one it was fine-tuned from (WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from visionzoo.models.clip.model import Clip


@torch.no_grad()
def interpolated(model: Clip, start: Mapping[str, Tensor], share: float) -> Clip:
    """A copy of ``model`` whose weights are ``(1 - share) * start + share * own``.

    Args:
        model: after fine-tuning; it is not changed.
        start: its state dict before.
        share: in [0, 1]; 0.5 is the paper's choice where nothing is known of the data to come.

    Raises:
        ValueError: for a share outside [0, 1], or another model's weights.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must be in [0, 1]: 0 is the start, 1 the fine-tuned model")
    own = model.state_dict()
    if set(own) != set(start) or any(own[k].shape != start[k].shape for k in own):
        raise ValueError(f"the starting weights are not those of {model.name}: their keys or shapes differ")
    mixed = copy.deepcopy(model)
    for key, tensor in mixed.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(start[key].to(tensor), own[key], share))
    return mixed
