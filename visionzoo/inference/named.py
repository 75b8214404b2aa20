"""Models that are asked for by a name, which says nothing of their weights."""

from __future__ import annotations

import warnings

from visionzoo.backbones import backbone_info
from visionzoo.models.sam.build import SAM_BACKBONES

#: What asks for random weights.
RANDOM = "random"
#: What is taken where nobody says: small, of a licence that allows everything, and good without fine-tuning.
DEFAULT_BACKBONE = "vit_small_patch14_dinov2"
#: Pixels that pretrained networks of a larger size are asked at: a quarter of the work of 448, at little loss.
USUAL = 224


def usual_size(backbone: str) -> int | None:
    """The size at which to ask a network that was trained larger, in pixels; None for its own."""
    known = backbone_info(backbone)
    if min(known.image_size) <= USUAL or "any_size" not in known.capabilities:
        return None
    return USUAL // known.stride * known.stride


def weights_of(name: str, weights: str | None) -> str | None:
    """What ``create_backbone`` and ``create_sam`` take for what a person said of a name's weights.

    Answers of random weights look like any others, so nobody gets them who did not ask for them, and whoever did is
    told.

    Args:
        name: of a backbone, or of one of Meta's SAMs.
        weights: a source of weights, or ``"random"``; None where nothing was said.

    Raises:
        ValueError: where nothing was said, or for an unknown name.
    """
    if weights == RANDOM:
        warnings.warn(f"{name} has random weights, as was asked for: its answers mean nothing", stacklevel=3)
        return None
    if weights is None:
        published = backbone_info(SAM_BACKBONES.get(name, name)).weights
        known = f", such as {published}" if published is not None and name not in SAM_BACKBONES else ""
        raise ValueError(
            f"{name} is a name without weights, and random ones would answer as if they knew: give --weights (a file, "
            f"a folder, hf-hub:org/name or timm:tag{known}), or --weights {RANDOM} for just these"
        )
    return weights
