"""Batches of other people's loaders, as the tasks take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visionzoo.types import CaptionBatch, ImageBatch, ViewBatch


def image_batch(batch: Any) -> ImageBatch:
    """Images (B, C, H, W) uint8 with labels (B,), as torchvision's data sets give them, or images alone ->
    :class:`ImageBatch`.

    Raises:
        ValueError: for anything else, and for images that are not uint8.
    """
    if isinstance(batch, ImageBatch):
        return batch
    if isinstance(batch, Tensor):
        batch = (batch, batch.new_full((len(batch),), -1, dtype=torch.int64))
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise ValueError(f"need batches of visionzoo.types.ImageBatch, or (images, labels); got {describe(batch)}")
    images, labels = batch
    return ImageBatch(_pixels(images), labels, torch.arange(len(images), device=images.device))


def caption_batch(batch: Any) -> CaptionBatch | ImageBatch:
    """Images (B, C, H, W) uint8 with one text for each -> :class:`CaptionBatch`.

    Raises:
        ValueError: for anything else, and for images that are not uint8.
    """
    if isinstance(batch, CaptionBatch | ImageBatch):
        return batch
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[0], Tensor):
        images, texts = batch
        if isinstance(texts, list | tuple) and len(texts) == len(images) and all(isinstance(t, str) for t in texts):
            places = torch.arange(len(images), device=images.device)
            return CaptionBatch(_pixels(images), tuple(texts), places, places)
    raise ValueError(f"need batches of visionzoo.types.CaptionBatch, or (images, texts); got {describe(batch)}")


def view_batch(batch: Any) -> ViewBatch | ImageBatch:
    """Several views (B, C, H, W) uint8 of each image, alone or with labels (B,), as torchvision's data sets give them
    with lightly's transforms -> :class:`ViewBatch`; batches of ours as they are.

    Raises:
        ValueError: for anything else, for views that are not uint8, and for views of other numbers of images.
    """
    if isinstance(batch, ViewBatch | ImageBatch):
        return batch
    views, labels = batch if _pair_of_views(batch) else (batch, None)
    if not isinstance(views, list | tuple) or not views or not all(isinstance(view, Tensor) for view in views):
        raise ValueError(
            f"need batches of visionzoo.types.ViewBatch, or several views of each image: (views, labels); got "
            f"{describe(batch)}"
        )
    sizes = [len(_pixels(view)) for view in views]
    if len(set(sizes)) > 1:
        raise ValueError(f"the views are of {sizes} images; each must be of the same ones")
    index = torch.arange(sizes[0], device=views[0].device)
    return ViewBatch(tuple(views), index.new_full((sizes[0],), -1) if labels is None else labels, index)


def _pair_of_views(batch: Any) -> bool:
    return isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[0], list | tuple)


def _pixels(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"need images (B, C, H, W) uint8 in 0..255, got {tuple(images.shape)} {images.dtype}: the task normalises "
            "them as its weights want; use torchvision.transforms.PILToTensor, without ToTensor and Normalize"
        )
    return images


def describe(batch: Any) -> str:
    """``(Tensor, str)``: the type of a batch, and of what is in it."""
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return f"({', '.join(type(part).__name__ for part in batch)})"
    return type(batch).__name__
