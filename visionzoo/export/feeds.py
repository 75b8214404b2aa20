"""Real pictures as inputs of graphs: those to prove them on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzoo.data.images import UnreadableImage, image_extensions, open_image
from visionzoo.data.sources.base import Splits
from visionzoo.data.sources.open import open_data
from visionzoo.data.transforms import EvalTransform
from visionzoo.export.parts import Feed, Feeds
from visionzoo.types import Preprocess

#: Pictures that a proof looks at, at most.
MOST_IMAGES = 32
#: Sizes of the batches that are compared.
BATCHES = (3, 1)
#: Pictures that go through a model at a time when all of them do.
ALL_AT_ONCE = 8
#: A user's pictures: an image, a folder of them or any other data set; or splits that are open already.
Pictures = str | Splits[Any]


def proof_images(data: Pictures | None) -> tuple[list[Image.Image], str]:
    """Pictures to compare on, and what they are in words.

    Args:
        data: the user's; None for parts of the two photographs that come with scikit-learn.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for data without readable images.
    """
    if data is None:
        return _built_in(), "parts of scikit-learn's two photographs"
    images = data_images(data, MOST_IMAGES)
    return images, f"{len(images)} images of {_called(data)}"


def data_images(data: Pictures, most: int, *, training: bool = False) -> list[Image.Image]:
    """Up to ``most`` pictures of the user's data, evenly spread.

    Args:
        data: the user's.
        most: number of pictures.
        training: those of the training split, where there is one, rather than those to evaluate on.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for data without readable images.
    """
    if isinstance(data, Splits):
        splits = data
    elif os.path.isfile(data) and os.path.splitext(data)[1].lower() in image_extensions():
        return [open_image(data)]
    else:
        splits = open_data(data, "images")
    source = splits.first if training else splits.to_evaluate
    images = []
    for i in np.unique(np.linspace(0, len(source) - 1, most).round().astype(int)) if len(source) else ():
        try:
            images.append(source.read(int(i)))
        except UnreadableImage:
            continue
    if not images:
        raise ValueError(f"none of the images in {_called(data)} can be read; a proof needs at least one")
    return images


def _called(data: Pictures) -> str:
    return data if isinstance(data, str) else "the splits that were given"


def _built_in() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    parts = []
    for pixels in load_sample_images().images:
        whole = Image.fromarray(pixels)
        parts.append(whole)
        for side in (320, 160):
            for left in range(0, whole.width - side + 1, 200):
                top = (left * 7) % (whole.height - side + 1)
                parts.append(whole.crop((left, top, left + side, top + side)))
    return parts


def pixel_batch(images: Sequence[Image.Image], preprocess: Preprocess, start: int, count: int) -> Tensor:
    """(B, C, H, W) uint8 of ``count`` pictures from ``start`` on, the first again after the last."""
    transform = EvalTransform(preprocess)
    return torch.stack([transform(images[(start + i) % len(images)]) for i in range(count)])


def image_feeds(preprocess: Preprocess, sizes: Sequence[tuple[int, int]]) -> Feeds:
    """Feeds of one input, uint8 pictures: each size in each batch, and every picture at the model's own size once.

    Args:
        preprocess: how pictures become the input.
        sizes: (H, W); the first one is the graph's example.
    """

    def feeds(images: Sequence[Image.Image]) -> Iterator[Feed]:
        for k, size in enumerate(sizes):
            fitted = replace(preprocess, image_size=size)
            for i, batch in enumerate(BATCHES):
                yield Feed(f"{size[0]}x{size[1]}", batch, (pixel_batch(images, fitted, 5 * (k + i), batch),))
        size = preprocess.image_size
        for start in range(0, len(images), ALL_AT_ONCE):
            yield Feed(f"{size[0]}x{size[1]}", ALL_AT_ONCE, (pixel_batch(images, preprocess, start, ALL_AT_ONCE),))

    return feeds


def open_image_sizes(size: tuple[int, int], stride: int) -> list[tuple[int, int]]:
    """Sizes to compare where height and width are open: one that is not square, the model's own, and an odd one.

    Args:
        size: (H, W) that the model is made for.
        stride: pixels of a cell of its grid.
    """
    height, width = size
    wide = height + stride, max(2, width // stride // 2) * stride
    odd = height - stride // 2 - 1 + height % 2, width + stride // 2 + 1 - width % 2
    return [wide, size, (max(odd[0], 1) | 1, odd[1] | 1)]
