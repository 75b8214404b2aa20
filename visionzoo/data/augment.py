"""Training augmentation as albumentations pipelines. Pixels are uint8 RGB throughout."""

from __future__ import annotations

import os
from typing import Any

from visionzoo.data.images import Box
from visionzoo.data.options import AugmentOptions
from visionzoo.types import Preprocess

# albumentations asks the network for a newer version when it is imported; nothing here talks to the network unasked.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE_CHECK", "1")


def build_augment(options: AugmentOptions, preprocess: Preprocess, *, mirror: bool = True) -> tuple[Any, Any]:
    """The random crop that draws a box, and the pipeline for the resized image; None for either with nothing to do.

    ``mirror=False`` leaves the flips to the caller.
    """
    import albumentations as A

    height, width = preprocess.image_size
    # Corners that rotate in are filled with the mean colour, which normalises to zero.
    fill = tuple(round(m * 255) for m in preprocess.mean)
    fill = fill * 3 if len(fill) == 1 else fill
    crop = None
    steps: list[Any] = []
    if options.crop == "random_resized":
        crop = A.RandomResizedCrop(
            size=preprocess.image_size, scale=options.crop_scale, ratio=options.crop_ratio, p=1.0
        )
    elif options.crop == "pad":
        pad = max(height, width) // 8 if options.crop_pad is None else options.crop_pad
        if pad:
            steps += [A.Pad(padding=pad, fill=0, p=1.0), A.RandomCrop(height=height, width=width, p=1.0)]
    if options.hflip and mirror:
        steps.append(A.HorizontalFlip(p=options.hflip))
    if options.vflip and mirror:
        steps.append(A.VerticalFlip(p=options.vflip))
    if options.policy == "randaugment" and options.num_ops and options.magnitude:
        operations = _randaugment(options.magnitude / 10, fill)
        steps.append(A.SomeOf(operations, n=options.num_ops, replace=True, p=1.0))
    elif options.policy == "three_augment":
        steps.append(
            A.OneOf(
                [
                    A.ToGray(p=1.0),
                    A.Solarize(threshold_range=(0.5, 0.5), p=1.0),
                    A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=1.0),
                ],
                p=1.0,
            )
        )
    if options.color_jitter:
        share = options.color_jitter
        steps.append(A.ColorJitter(brightness=share, contrast=share, saturation=share, hue=0.0, p=1.0))
    if options.erasing:
        steps.append(A.Erasing(scale=(0.02, 1 / 3), ratio=(0.3, 3.3), fill="random", p=options.erasing))
    return crop, A.Compose(steps, p=1.0) if steps else None


def draw_box(crop: Any, size: tuple[int, int]) -> Box:
    """(left, top, right, bottom) that albumentations' random crop draws in an image of ``size`` (width, height)."""
    params = crop.get_params_dependent_on_data({"shape": (size[1], size[0], 3)}, {})
    left, top, right, bottom = (int(edge) for edge in params["crop_coords"])
    return left, top, right, bottom


def _randaugment(m: float, fill: tuple[int, ...]) -> list[Any]:
    """RandAugment's operations at a share ``m`` of their full strength, which is timm's "increasing" set."""
    import albumentations as A

    factor = (1 - 0.9 * m, 1 + 0.9 * m)
    same = (1.0, 1.0)

    def enhance(**ranges: tuple[float, float]) -> Any:
        return A.ColorJitter(
            **{"brightness": same, "contrast": same, "saturation": same, "hue": (0, 0), **ranges}, p=0.5
        )

    def affine(**motion: Any) -> Any:
        return A.Affine(**motion, fill=fill, p=0.5)

    shear, shift = 17.2 * m, 0.45 * m  # 0.3 radians; a share of the edge
    return [
        A.AutoContrast(p=0.5),
        A.Equalize(p=0.5),
        A.InvertImg(p=0.5),
        A.Posterize(num_bits=(8 - round(4 * m), 8), p=0.5),
        A.Solarize(threshold_range=(1 - m, 1.0), p=0.5),
        enhance(brightness=factor),
        enhance(contrast=factor),
        enhance(saturation=factor),
        A.Sharpen(alpha=(0.0, 0.9 * m), lightness=same, p=0.5),
        A.Rotate(limit=30 * m, fill=fill, p=0.5),
        affine(shear={"x": (-shear, shear), "y": (0, 0)}),
        affine(shear={"x": (0, 0), "y": (-shear, shear)}),
        affine(translate_percent={"x": (-shift, shift), "y": (0, 0)}),
        affine(translate_percent={"x": (0, 0), "y": (-shift, shift)}),
    ]
