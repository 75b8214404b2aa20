"""Where a model looks: attention rolled out over the blocks, drawn over the picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.backbones import create_backbone, require_capability
from visionzoo.data.images import ImageInput, open_image
from visionzoo.data.transforms import EvalTransform
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.inference.device import resolve_device
from visionzoo.inference.named import RANDOM, weights_of
from visionzoo.metrics.rollout import attention_rollout, whole_image_attention
from visionzoo.models.preprocess import Normalize
from visionzoo.viz.heatmap import heat_overlay
from visionzoo.weights.local import local_source


def attention_heat(model: nn.Module, images: Tensor) -> Tensor:
    """Rolled-out attention of what the model's pooled features read: (B, C, H, W) normalised -> (B, h, w), sum one.

    Args:
        model: a backbone, or a classifier, with the capability ``attention_maps``.
        images: normalised.

    Raises:
        ValueError: for a model without attention maps.
    """
    require_capability(model, "attention_maps", "drawing attention")
    backbone: Any = model
    maps = backbone.attention_maps(images)
    size = (images.shape[2], images.shape[3])
    if hasattr(backbone, "attention_layouts"):  # blocks that attend within windows
        layouts = backbone.attention_layouts(size, images)
        maps = [m if at is None else whole_image_attention(m, at) for m, at in zip(maps, layouts, strict=True)]
    return attention_rollout(
        maps,
        backbone.patch_embed.grid_size(size),
        prefix_tokens=backbone.num_prefix_tokens,
        query=getattr(backbone, "pooled_token", None),
    )


def draw_attention(
    image: ImageInput,
    model: str | Path,
    out: str | Path,
    *,
    weights: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
) -> Path:
    """Draw where a model looks in one image.

    Args:
        image: what ``open_image`` takes.
        model: a run folder of a classifier, or the name of a backbone.
        out: the picture to write.
        weights: for a backbone: what ``create_backbone`` takes, or ``random``; it must be given.
        image_size: for a backbone: pixels; None for the size it was trained at.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError: if there is no such image or run.
        ValueError: for an image that cannot be read, an unknown model, one without attention maps, a backbone without
            ``weights``, or ``weights`` or ``image_size`` given for a run.
    """
    picture = open_image(image)
    model = str(local_source(str(model), "classify"))
    module, where = _load(model, weights, image_size), resolve_device(device)
    module.eval().to(where)
    seen = EvalTransform(module.preprocess)(picture)
    pixels = seen.unsqueeze(0).to(where)
    heat = attention_heat(module, Normalize(module.preprocess).to(where)(pixels))[0]
    # The last patches may reach beyond the picture, or leave some of it out.
    p = module.patch_embed.patch_size
    seen = F.pad(seen, (0, heat.shape[1] * p - seen.shape[2], 0, heat.shape[0] * p - seen.shape[1]), value=255)
    name = Path(model).name if _is_run(model) else f"{model}, {'random weights' if weights == RANDOM else weights}"
    return heat_overlay(seen.permute(1, 2, 0).numpy(), heat.cpu().numpy(), out, title=f"attention rollout, {name}")


def _load(model: str, weights: str | None, image_size: int | tuple[int, int] | None) -> Any:
    if not _is_run(model):
        return create_backbone(model, weights=weights_of(model, weights), image_size=image_size)
    if weights is not None or image_size is not None:
        raise ValueError(f"{model} has weights and an image size of its own; leave the options out")
    return ImageClassifier.load(model, "cpu").model


def _is_run(model: str) -> bool:
    return os.path.isdir(model) or model.startswith("timm:")
