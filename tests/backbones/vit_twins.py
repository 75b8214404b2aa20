"""A native ViT at two blocks' depth beside timm's own, with the same perturbed weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import timm
import torch
from backbone_checks import perturb
from torch import Tensor, nn

import visionzoo.backbones  # noqa: F401  fills the registry
from visionzoo.backbones.vit import VisionTransformer
from visionzoo.registry import _spec

DEPTH = 2
#: What a twin of timm's needs to be the published model: Meta's norms have eps 1e-6, timm's port 1e-5.
META_NORM = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)}


def shallow(name: str, *, parts: dict[str, Any] | None = None, **kwargs: Any) -> VisionTransformer:
    """A registered ViT with two blocks, at its full width; of SAM's encoder one in windows and one global."""
    build = _spec(name).build
    changes: dict[str, Any] = {"depth": DEPTH, **(parts or {})}
    if hasattr(build.args[0], "global_blocks"):
        changes["global_blocks"] = (1,)
    model = build.func(replace(build.args[0], **changes), build.args[1], **kwargs)
    model.name = name
    return model


def timm_options(name: str) -> dict[str, Any]:
    """What timm's model of a name needs to have two blocks and to be the published one."""
    if name.startswith("samvit"):
        return {"depth": DEPTH, "global_attn_indexes": (1,), **(META_NORM if name[-3:] != "224" else {})}
    return {"depth": DEPTH}


@cache
def twins(name: str, size: int | tuple[int, int], **options: Any) -> tuple[VisionTransformer, nn.Module]:
    """Ours and timm's in eval, with the same weights; shared by the tests, which must not change them."""
    torch.manual_seed(0)
    size = (size, size) if isinstance(size, int) else size
    theirs = timm.create_model(name, num_classes=0, img_size=size, **timm_options(name), **options)
    perturb(theirs)
    ours = shallow(name, image_size=size)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


def pictures(height: int, width: int | None = None, *, batch: int = 2, channels: int = 3) -> Tensor:
    """Seeded images."""
    return torch.randn(batch, channels, height, width or height, generator=torch.Generator().manual_seed(1))
