"""The datamodule of contrastive image-text training."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import DataLoader

from visionzoo.data.augment import AugmentOptions, Crop, Decode, Policy
from visionzoo.data.caption_samples import CaptionCollate, CaptionDataset
from visionzoo.data.dataset import Collate, ImageDataset, SourceDataset, Transform
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.sources.base import Source, Splits, fingerprint
from visionzoo.data.sources.captions import DEFAULT_TEMPLATES, CaptionSource
from visionzoo.data.sources.open import open_evaluation
from visionzoo.data.sources.open_captions import open_captions
from visionzoo.data.sources.split import limited
from visionzoo.data.sources.spoken import spoken_names
from visionzoo.data.sources.templates import fill, resolve_templates
from visionzoo.data.transforms import EvalTransform, TrainTransform
from visionzoo.types import CaptionBatch


class CaptionData(VisionData):
    """Captioned images as loaders of :class:`visionzoo.types.CaptionBatch`.

    Captions are read at birth, images by the workers. Where a labelled set is there for it (``zero_shot_path``, or
    classes of the validation images themselves), validation has a second loader, of
    :class:`visionzoo.types.ImageBatch`, whose labels index into ``zero_shot_classes``.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        val_fraction: float | None = None,
        zero_shot_path: str | None = None,
        train_limit: int | float | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        templates: list[str] | str | None = None,
        holdout: str | None = None,
        crop: Crop = "random_resized",
        crop_scale: tuple[float, float] = (0.9, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.0,
        decode: Decode = "exact",
        policy: Policy = "none",
        magnitude: float = 7.0,
        num_ops: int = 2,
        color_jitter: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            path: the data: ``shapes`` or ``shapes:N`` (built in, N training pictures); a CSV, TSV or JSONL manifest or
                a folder with ``train.jsonl``, ``dev.jsonl`` etc.; a folder of images with ``.txt`` files beside them
                (one caption per line); WebDataset shards as img2dataset writes them: one ``.tar``, a folder of them,
                or ``{00000..00010}.tar``; or anything with classes, whose names become captions.
            val_path: validation data of their own, of any of these kinds.
            val_fraction: where there is no validation split, the share of training images to hold out. None uses the
                test split if there is one, otherwise holds out 0.05 (0.2 of each class if captions are made of
                classes). 1 validates on everything, 0 on nothing.
            zero_shot_path: a labelled set, of any kind that classification takes, for zero-shot accuracy in validation.
                None takes the validation images where they have classes (class folders, ``shapes``); ``none`` nothing.
            train_limit: train on this many images (whole number) or this share of them (float). None for all.
            image_column: column of file names in manifests. None for the usual names.
            caption_column: column of captions in manifests, or key of the captions in shards' JSON. None for the usual
                names, and the ``.txt`` of shards.
            templates: captions of a class name, such as ``a photo of a {}.``; one is drawn each time. Or the name of
                a set of them, as :class:`visionzoo.ZeroShotClassifier` takes it: ``imagenet``.
            holdout: of ``shapes``: combinations of colour and kind that are never trained on and make up the
                validation images: ``red circle, blue star``, or ``diagonal`` for one kind of each colour.
            crop: ``random_resized`` (a random region), ``pad`` (the whole image, shifted within padding) or ``resize``
                (as in evaluation).
            crop_scale: area of the random region, as a share of the image.
            crop_ratio: width / height of the random region.
            hflip: probability of a mirror image; captions may say left and right.
            decode: ``exact`` gives PIL's pixels; ``fast`` resizes random regions with OpenCV, by areas, and
                reads a JPEG at a half, a quarter or an eighth where that is still larger than the input.
            policy: ``randaugment``, ``three_augment`` or ``none``; captions may name colours.
            magnitude: strength of RandAugment, 0 to 10.
            num_ops: operations of RandAugment per image.
            color_jitter: brightness, contrast and saturation vary by up to this share.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for data that cannot be learned from, no captions, or an option out of range.
        """
        super().__init__(path, **kwargs)
        self.augment_options = AugmentOptions(
            crop=crop,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            hflip=hflip,
            decode=decode,
            policy=policy,
            magnitude=magnitude,
            num_ops=num_ops,
            color_jitter=color_jitter,
        )
        #: Sentences that class names are put into.
        given = resolve_templates(list(DEFAULT_TEMPLATES) if templates is None else templates)
        self.templates = tuple(fill(template, "{}") for template in given)
        sets = open_captions(
            path,
            val_path=val_path,
            val_fraction=val_fraction,
            seed=self.seed,
            templates=self.templates,
            image_column=image_column,
            caption_column=caption_column,
            holdout=holdout,
        )
        train = sets.named.get("train")
        if train is not None and train_limit is not None:
            train = limited(train, train_limit, self.seed, train.targets if train.classes else None)
        self.train_source: CaptionSource | None = train
        self.val_source: CaptionSource | None = sets.named.get("val")
        self.test_source = sets.named.get("test")
        #: Captions in which nothing was written; they were dropped.
        self.empty_captions = sets.empty_captions
        #: (file, what is wrong with it) of files that were passed over when the data were opened, such as shards.
        self.problems = sets.problems
        if sets.problems:
            listed = "; ".join(f"{name}: {reason}" for name, reason in sets.problems[:5])
            warnings.warn(f"{path}: {len(sets.problems)} faults in the files: {listed}", stacklevel=2)
        #: Labelled images for zero-shot accuracy, or None.
        self.zero_shot_source: Source | None = None
        if zero_shot_path is None:
            if self.val_source is not None and self.val_source.classes:
                self.zero_shot_source = self.val_source
        elif zero_shot_path != "none":
            self.zero_shot_source = open_evaluation(zero_shot_path, seed=self.seed)
        self._fingerprint: str | None = None

    @property
    def zero_shot_classes(self) -> tuple[str, ...]:
        """Names that the labels of the zero-shot images stand for, with spaces; empty without such images."""
        source = self.zero_shot_source
        return () if source is None else spoken_names(source.classes)

    def fingerprint(self) -> str:
        """A hash of which images with which captions are in which split, 32 hex digits. Reads no image."""
        if self._fingerprint is None:
            splits = Splits(train=self.train_source, val=self.val_source, test=self.test_source)
            self._fingerprint = fingerprint(splits)
        return self._fingerprint

    # Loaders.

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        return self._set(source, TrainTransform(self.spec, self.augment_options), training=True)

    def evaluation_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        return self._set(source, EvalTransform(self.spec), training=False)

    def _set(self, source: Source, transform: Transform, training: bool) -> tuple[SourceDataset, Collator]:
        assert isinstance(source, CaptionSource)
        dataset = CaptionDataset(source, transform, one_caption=training, seed=self.seed, substitute=training)
        return dataset, CaptionCollate(self.image_shape)

    def zero_shot_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        """Labelled images as they are evaluated."""
        return ImageDataset(source, EvalTransform(self.spec), seed=self.seed), Collate(source, self.image_shape)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The captioned validation images, if any; then the images for zero-shot accuracy, if any."""
        loaders = [] if self.val_source is None else [self.evaluation_loader(self.val_source)]
        if self.zero_shot_source is not None:
            loaders.append(self.evaluation_loader(self.zero_shot_source, self.zero_shot_set(self.zero_shot_source)))
        return loaders

    def test_dataloader(self) -> DataLoader[CaptionBatch]:
        """Every captioned test image once, over all ranks.

        Raises:
            ValueError: if the data have no test split.
        """
        if self.test_source is None:
            raise ValueError(f"{self.path} has no test split; use validate, which scores the validation images")
        return self.evaluation_loader(self.test_source)

    def predict_dataloader(self) -> DataLoader[CaptionBatch]:
        """The captioned validation images, in order.

        Raises:
            ValueError: if there are none.
        """
        if self.val_source is None:
            raise ValueError(f"nothing to predict: {self.path} has no validation images")
        return self.prediction_loader(self.val_source)
