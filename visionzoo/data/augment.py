"""Training augmentation as albumentations pipelines. Pixels are uint8 RGB throughout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from visionzoo.types import Preprocess

# albumentations asks the network for a newer version when it is imported; nothing here talks to the network unasked.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE_CHECK", "1")

Crop = Literal["random_resized", "pad", "resize"]
Policy = Literal["none", "randaugment", "three_augment"]
Decode = Literal["exact", "fast"]


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """What varies from one view of a training image to the next. Checked at birth; the message says the limits.

    The defaults suit fine-tuning on photographs. Digits and other images where left is not right want ``hflip=0``.
    """

    crop: Crop = (
        "random_resized"  #: a random region; the evaluation view shifted within padding (CIFAR); or that view itself
    )
    crop_scale: tuple[float, float] = (0.3, 1.0)  #: area of the random region, as a share of the image
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  #: its width / height
    crop_pad: int | None = None  #: pixels on each side for ``crop="pad"``; None for an eighth of the input, 4 of 32
    hflip: float = 0.5  #: probability of a mirror image
    vflip: float = 0.0  #: probability of an upside-down image
    policy: Policy = (
        "randaugment"  #: RandAugment (1909.13719), or DeiT III's grey/solarize/blur (2204.07118), or nothing
    )
    magnitude: float = 7.0  #: of RandAugment's operations, in 0..10; each draws its strength up to it
    num_ops: int = 2  #: operations per image, each applied with probability 0.5 as in timm
    color_jitter: float = 0.0  #: brightness, contrast and saturation vary by up to this share
    erasing: float = 0.0  #: probability that a random rectangle is filled with noise (1708.04896)
    decode: Decode = "exact"  #: ``fast`` gives up the last level of exactness of a random region for speed

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "erasing"):
            _check(name, getattr(self, name), 0, 1)
        _check("magnitude", self.magnitude, 0, 10)
        _check("color_jitter", self.color_jitter, 0, 1)
        _check("num_ops", self.num_ops, 0, 10)
        if self.crop_pad is not None:
            _check("crop_pad", self.crop_pad, 0, 10_000)
        for name, value, allowed in (
            ("crop", self.crop, ("random_resized", "pad", "resize")),
            ("policy", self.policy, ("none", "randaugment", "three_augment")),
            ("decode", self.decode, ("exact", "fast")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(allowed)}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_scale={self.crop_scale} must be (smallest, largest) with 0 < smallest <= largest <= 1"
            )
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={self.crop_ratio} must be (smallest, largest) with 0 < smallest <= largest")


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}={value} must be in {low}..{high}")


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
