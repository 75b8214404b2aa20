"""Which layout some weights are in, and under which prefix the part lies that a model wants."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from visionzoo.weights.adapters import LAYOUTS, Layout

#: Where a backbone lies inside larger models: ours (MAE, CLIP, SAM), open_clip's, and the networks of other trainers.
PARTS = (
    "",
    "encoder.",
    "visual.trunk.",
    "image_encoder.",
    "image_encoder.trunk.",
    "backbone.",
    "trunk.",
    "teacher.",
    "teacher.backbone.",
    "student.",
    "student.backbone.",
    "base_encoder.",
    "encoder_q.",
    "model.",
    "net.",
    "network.",
)


def own_keys(model: nn.Module) -> list[str]:
    """The keys of a model's state dict, without touching the tensors."""
    return list(model.state_dict(keep_vars=True))


def recognise(
    keys: Collection[str], own: Collection[str], family: str, heads: tuple[str, ...], parts: tuple[str, ...] = PARTS
) -> tuple[str, Layout | None] | None:
    """Where a model's weights lie in a state dict, and in which layout.

    Args:
        keys: of the state dict.
        own: of the model.
        family: the model's ``weights_family``; ``timm`` takes every layout.
        heads: prefixes of the model's head, which does not count.
        parts: prefixes to look under.

    Returns:
        The prefix, and the layout, where None is timm's own; or None when nothing fits.
    """
    trunk = {k for k in own if not k.startswith(heads)}
    inside = {
        part: {k[len(part) :] for k in keys if k.startswith(part)}
        for part in parts
        if not part or not any(k.startswith(part) for k in own)
    }
    for part, found in inside.items():
        if trunk == {k for k in found if not k.startswith(heads)} and found <= set(own):
            return part, None
    for part, found in inside.items():
        for layout in LAYOUTS.values():
            if family in (layout.family, "timm") and found and layout.matches(found):
                return part, layout
    # Its names, but not all of them: a head too much, or what a strict comparison will complain about.
    best = max(inside, key=lambda part: len(trunk & inside[part]))
    shared = len(trunk & inside[best])
    # Foreign networks have a ``norm.weight`` too, so that a few common names say nothing.
    return (best, None) if shared and 5 * shared >= min(len(trunk), len(inside[best])) else None
