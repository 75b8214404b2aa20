"""The options of the data modules, each of them in one place. The command line reads these classes.

Workers import them with the transforms, so this imports nothing of Lightning.
"""

# No "from __future__ import annotations": jsonargparse does not look up names of types in the modules of all bases.

from dataclasses import dataclass, fields
from typing import Literal, get_args

from visionzoo.data.loader import StartMethod
from visionzoo.data.sources.reading import (
    CaptionReading,
    ImageReading,
    LabelReading,
    ObjectReading,
    Options,
    ReadOptions,
    check_choice,
    check_range,
)

Crop = Literal["random_resized", "pad", "resize"]
Policy = Literal["none", "randaugment", "three_augment"]
Decode = Literal["exact", "fast"]
SegmentCrop = Literal["scale_jitter", "random_resized", "resize"]


@dataclass(frozen=True, kw_only=True)
class BaseAugment(Options):
    """What every random view has.

    Args:
        crop_scale: area of the random region, as a share of the image.
        crop_ratio: width / height of the random region.
        hflip: probability of a mirror image.
        vflip: probability of an upside-down image.
        color_jitter: brightness, contrast and saturation vary by up to this share.
        fixed_views: an image has this many random views, which come again in turn: what a frozen network makes of them
            is computed once and kept. None for another view in each epoch.
    """

    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.0
    vflip: float = 0.0
    color_jitter: float = 0.0
    fixed_views: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hflip", "vflip", "color_jitter"):
            check_range(name, getattr(self, name), 0, 1)
        if self.fixed_views is not None and self.fixed_views < 1:
            raise ValueError(f"fixed_views={self.fixed_views} must be at least 1; without it each epoch has new views")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_scale={self.crop_scale} must be (smallest, largest) with 0 < smallest <= largest <= 1"
            )
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={self.crop_ratio} must be (smallest, largest) with 0 < smallest <= largest")

    @property
    def varies(self) -> bool:
        """Whether an image does not look the same in every epoch."""
        return bool(self.hflip or self.vflip or self.color_jitter)

    @property
    def comes_again(self) -> bool:
        """Whether the views of an image are few, so that what a frozen network makes of them is worth keeping."""
        return not self.varies or self.fixed_views is not None


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(BaseAugment):
    """What varies from one view of a training image to the next. Checked at birth; the message says the limits.

    The defaults suit fine-tuning on photographs. Digits and other images where left is not right want ``hflip=0``.
    RandAugment is 1909.13719, ``three_augment`` 2204.07118, erasing 1708.04896.

    Args:
        crop: ``random_resized`` (a random region), ``pad`` (the whole image, shifted within padding, as for CIFAR)
            or ``resize`` (as in evaluation).
        crop_pad: pixels of padding on each side for ``crop=pad``; None for an eighth of the input size.
        decode: ``exact`` gives PIL's pixels; ``fast`` resizes random regions with OpenCV, by areas, and
            reads a JPEG at a half, a quarter or an eighth where that is still larger than the input.
        policy: ``randaugment``, ``three_augment`` (grey, solarize or blur, as in DeiT III) or ``none``.
        magnitude: strength of RandAugment, 0 to 10.
        num_ops: operations of RandAugment per image.
        erasing: probability that a random rectangle is filled with noise.
    """

    crop: Crop = "random_resized"
    crop_pad: int | None = None
    hflip: float = 0.5
    decode: Decode = "exact"
    policy: Policy = "randaugment"
    magnitude: float = 7.0  # each operation draws its strength up to it
    num_ops: int = 2  # each applied with probability 0.5 as in timm
    erasing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("erasing", self.erasing, 0, 1)
        check_range("magnitude", self.magnitude, 0, 10)
        check_range("num_ops", self.num_ops, 0, 10)
        if self.crop_pad is not None:
            check_range("crop_pad", self.crop_pad, 0, 10_000)
        for name, allowed in (("crop", Crop), ("policy", Policy), ("decode", Decode)):
            check_choice(name, getattr(self, name), get_args(allowed))

    @property
    def varies(self) -> bool:
        """Whether an image does not look the same in every epoch."""
        return super().varies or self.crop != "resize" or self.policy != "none" or bool(self.erasing)


@dataclass(frozen=True, kw_only=True)
class ViewOptions(BaseAugment):
    """What varies from one view to the next in training. Checked at birth.

    Args:
        masks_per_image: most objects of an image in one training step; which of more is drawn each time.
        eval_masks_per_image: most objects of an image in evaluation, drawn once. None for all.
        min_area: an object of fewer pixels, in the image or in the view, is left out and counted.
        crop: ``resize`` (as in evaluation: what a frozen encoder makes of such images is computed once and kept),
            ``scale_jitter`` (the image scaled at random, then cut or padded) or ``random_resized`` (a random
            region, stretched).
        jitter_scale: smallest and largest scale of ``crop=scale_jitter``; 1 is the size in evaluation.
        crop_scale: area of the region of ``crop=random_resized``, as a share of the image.
        crop_ratio: its width / height.
    """

    masks_per_image: int = 16
    eval_masks_per_image: int | None = None
    min_area: int = 4
    crop: SegmentCrop = "resize"
    jitter_scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("crop", self.crop, get_args(SegmentCrop))
        low, high = self.jitter_scale
        if not 0.05 <= low <= high <= 10:
            raise ValueError(f"jitter_scale={self.jitter_scale} must be (smallest, largest) within 0.05..10")
        for name in ("masks_per_image", "eval_masks_per_image"):
            if (most := getattr(self, name)) is not None and most < 1:
                raise ValueError(f"{name}={most} must be at least 1")
        if self.min_area < 1:
            raise ValueError(f"min_area={self.min_area} must be at least 1: an empty mask is no object")

    @property
    def varies(self) -> bool:
        """Whether an image does not look the same in every epoch."""
        return super().varies or self.crop != "resize"

    def augment(self) -> AugmentOptions:
        """What this module leaves to albumentations."""
        shared = {field.name: getattr(self, field.name) for field in fields(BaseAugment)}
        crop: Crop = "random_resized" if self.crop == "random_resized" else "resize"
        return AugmentOptions(**shared, crop=crop, policy="none")


@dataclass(frozen=True, kw_only=True)
class MultiViewOptions(Options):
    """The views of an image in pretraining. Checked at birth.

    Args:
        recipe: ``simclr`` (arXiv 2002.05709, appendix A) or ``byol`` (2006.07733, appendix B; as MoCo v3 and DINO):
            which views are blurred and solarised.
        large_scale: area of the random region of the two large views, as a share of the image.
        small_views: further, small views of each image (DINO's multi-crop uses 8).
        small_size: height and width of a small view in pixels; a multiple of the patch.
        small_scale: area of the random region of a small view.
        color_strength: of the colour jitter: 1 is SimCLR's, 0.5 that of MoCo v3 and DINO, 0 none.
        grey: probability of a grey view.
        blur: factor on the probabilities of blur; 0 for images so small that it hides what is on them (CIFAR, as in
            2002.05709, appendix B.9).
        hflip: probability of a mirror image.
        mask_ratio: smallest and largest share of the patches of a large view that are hidden, in blocks, where the
            model learns from hidden patches (``model.patch_loss_weight``); iBOT's (arXiv 2111.07832).
        mask_probability: of a large view that hides anything.
    """

    recipe: Literal["simclr", "byol"] = "byol"
    large_scale: tuple[float, float] = (0.25, 1.0)
    small_views: int = 0
    small_size: int = 96
    small_scale: tuple[float, float] = (0.05, 0.25)
    color_strength: float = 0.5
    grey: float = 0.2
    blur: float = 1.0
    hflip: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    mask_probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("recipe", self.recipe, ("simclr", "byol"))
        for name in ("grey", "blur", "hflip"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("color_strength", self.color_strength, 0, 1.25)
        check_range("small_views", self.small_views, 0, 32)
        check_range("small_size", self.small_size, 1, 4096)
        for name in ("large_scale", "small_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name}={(low, high)} must be (smallest, largest) with 0 < smallest <= largest <= 1")
        low, high = self.mask_ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"mask_ratio={(low, high)} must be (smallest, largest) with 0 < smallest <= largest < 1")
        check_range("mask_probability", self.mask_probability, 0, 1)


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(ReadOptions):
    """How samples become batches.

    Args:
        batch_size: training images per step and process. On the command line ``auto`` measures, before a run, how
            many fit into memory.
        eval_batch_size: images per step and process in validation, test and predict. None for ``batch_size``.
        num_workers: processes that read images; 0 reads in the main one.
        worker_start_method: how they start: fork, spawn or forkserver. None for the platform's default.
        drop_last: leave out the last training batch of an epoch if it is not full.
        max_bad_share: the run stops when more than this share of the training images turned out to be unreadable.
    """

    batch_size: int | Literal["auto"] = 64
    eval_batch_size: int | None = None
    num_workers: int = 2
    worker_start_method: StartMethod | None = None
    drop_last: bool = True
    max_bad_share: float = 0.05

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int):
            raise ValueError(f"batch_size={self.batch_size!r} is for train.py fit, which measures it; give a number")
        for name, least in (("batch_size", 1), ("num_workers", 0), ("eval_batch_size", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        check_range("max_bad_share", self.max_bad_share, 0, 1)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(LoaderOptions, AugmentOptions, LabelReading):
    """Options of :class:`visionzoo.data.classify.ClassifyData`."""


@dataclass(frozen=True, kw_only=True)
class UnlabelledOptions(LoaderOptions, AugmentOptions, ImageReading):
    """Options of :class:`visionzoo.data.mae.MaeData`."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    policy: Policy = "none"


@dataclass(frozen=True, kw_only=True)
class ViewsOptions(LoaderOptions, MultiViewOptions, LabelReading):
    """Options of :class:`visionzoo.data.ssl.SslData`."""


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(LoaderOptions, AugmentOptions, CaptionReading):
    """Options of :class:`visionzoo.data.clip.ClipData`.

    Args:
        hflip: probability of a mirror image; captions may say left and right.
        policy: ``randaugment``, ``three_augment`` or ``none``; captions may name colours.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    hflip: float = 0.0
    policy: Policy = "none"


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(LoaderOptions, ViewOptions, ObjectReading):
    """Options of :class:`visionzoo.data.segment.SegmentData`."""
