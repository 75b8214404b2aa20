"""The datamodule of image classification."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from visionzoo.data.augment import AugmentOptions, Crop, Decode, Policy
from visionzoo.data.dataset import Collate, ImageDataset, SourceDataset
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.sources.base import Source, Subset, class_counts, fingerprint
from visionzoo.data.sources.open import open_splits, open_unlabelled
from visionzoo.data.sources.split import stratified_limit
from visionzoo.data.transforms import EvalTransform, TrainTransform
from visionzoo.types import ImageBatch


class ClassificationData(VisionData):
    """Labelled images as loaders of :class:`visionzoo.types.ImageBatch`.

    Labels are read at birth, so ``classes``, ``num_classes``, ``multi_label`` and ``class_counts`` are known right
    away. Images are read by the workers.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        predict_path: str | list[str] | None = None,
        val_fraction: float | None = None,
        train_limit: int | float | None = None,
        balanced_sampling: bool = False,
        crop: Crop = "random_resized",
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        crop_pad: int | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        decode: Decode = "exact",
        policy: Policy = "randaugment",
        magnitude: float = 7.0,
        num_ops: int = 2,
        color_jitter: float = 0.0,
        erasing: float = 0.0,
        classes: list[str] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        root: str | None = None,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            path: the data: ``digits`` or ``shapes`` (built in), ``torchvision:CIFAR10``, a folder of class folders
                (with or without ``train``/``val`` above them), parquet files, or a CSV or JSONL manifest.
            val_path: validation data of their own, of any of these kinds.
            predict_path: images without labels for ``predict``: a folder, a file or a list of files. None predicts the
                validation images.
            val_fraction: where there is no validation split, the share of training images to hold out, stratified. None
                uses the test split if there is one, otherwise holds out 0.2. 1 validates on everything, 0 on nothing.
            train_limit: a label budget: train on this many images (whole number) or this share of them (float), every
                class by its share. None for all.
            balanced_sampling: draw training images so that all classes are equally frequent (with replacement).
            crop: ``random_resized`` (a random region), ``pad`` (the whole image, shifted within padding, as for CIFAR)
                or ``resize`` (as in evaluation).
            crop_scale: area of the random region, as a share of the image.
            crop_ratio: width / height of the random region.
            crop_pad: pixels of padding on each side for ``crop=pad``; None for an eighth of the input size.
            hflip: probability of a mirror image.
            vflip: probability of an upside-down image.
            decode: ``exact`` gives PIL's pixels; ``fast`` resizes random regions with OpenCV, by areas, and
                reads a JPEG at a half, a quarter or an eighth where that is still larger than the input.
            policy: ``randaugment``, ``three_augment`` (grey, solarize or blur, as in DeiT III) or ``none``.
            magnitude: strength of RandAugment, 0 to 10.
            num_ops: operations of RandAugment per image.
            color_jitter: brightness, contrast and saturation vary by up to this share.
            erasing: probability that a random rectangle is filled with noise.
            classes: class names in the order the model has them. None for the data's own order.
            image_column: column of images or file names in tables. None for the usual names.
            label_column: column of labels in tables. None for the usual names.
            root: folder of torchvision's sets. None for the user's cache.
            download: let torchvision download a set that is not there.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for data that cannot be learned from, or an option out of range.
        """
        super().__init__(path, **kwargs)
        self.augment_options = AugmentOptions(
            crop=crop,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            crop_pad=crop_pad,
            hflip=hflip,
            vflip=vflip,
            decode=decode,
            policy=policy,
            magnitude=magnitude,
            num_ops=num_ops,
            color_jitter=color_jitter,
            erasing=erasing,
        )
        self.predict_path = predict_path
        self.balanced_sampling = balanced_sampling
        self.splits = open_splits(
            path,
            val_path=val_path,
            val_fraction=val_fraction,
            seed=self.seed,
            classes=classes,
            image_column=image_column,
            label_column=label_column,
            root=root,
            download=download,
        )
        self.train_source: Source | None = self.splits.train
        self.val_source = self.splits.val
        if train_limit is not None and self.train_source is not None:
            chosen = stratified_limit(self.train_source.targets, train_limit, self.seed)
            self.train_source = Subset(self.train_source, chosen)
        self._fingerprint: str | None = None

    # What the data are.

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.splits.classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels (or none)."""
        return self.splits.multi_label

    @property
    def class_counts(self) -> np.ndarray:
        """(K,) int64, training images per class, within the label budget."""
        if self.train_source is None:
            return np.zeros(self.num_classes, dtype=np.int64)
        return class_counts(self.train_source)

    def fingerprint(self) -> str:
        """A hash of which images with which labels are in which split, 32 hex digits. Reads no image."""
        if self._fingerprint is None:
            limited = type(self.splits)(train=self.train_source, val=self.splits.val, test=self.splits.test)
            self._fingerprint = fingerprint(limited)
        return self._fingerprint

    # Loaders.

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        transform = TrainTransform(self.spec, self.augment_options)
        dataset = ImageDataset(source, transform, seed=self.seed, substitute=True)
        return dataset, Collate(source, self.image_shape)

    def evaluation_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        return ImageDataset(source, EvalTransform(self.spec), seed=self.seed), Collate(source, self.image_shape)

    def sampling_weights(self) -> np.ndarray | None:
        if not self.balanced_sampling:
            return None
        assert self.train_source is not None
        return balanced_weights(self.train_source)

    def order_identity(self) -> dict[str, int | bool | str]:
        return {**super().order_identity(), "balanced_sampling": self.balanced_sampling}

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Every test image once, over all ranks.

        Raises:
            ValueError: if the data have no test split.
        """
        if self.splits.test is None:
            raise ValueError(f"{self.path} has no test split; use validate, which scores the validation images")
        return self.evaluation_loader(self.splits.test)

    def predict_dataloader(self) -> DataLoader[ImageBatch]:
        """Images of ``predict_path``, labels -1; without one, the validation images."""
        source: Source | None = self.splits.val if self.predict_path is None else open_unlabelled(self.predict_path)
        if source is None:
            raise ValueError(f"nothing to predict: {self.path} has no validation images and predict_path is not set")
        return self.prediction_loader(source)


def balanced_weights(source: Source) -> np.ndarray:
    """(N,) sampling weights under which every class is equally frequent.

    In multi-label data a sample weighs as much as its rarest label, and one without labels as the most frequent label.
    """
    share = 1.0 / np.maximum(class_counts(source), 1)
    if source.multi_label:
        weights = np.where(source.targets > 0, share[None, :], 0.0).max(axis=1)
        return np.where(weights > 0, weights, share.min())
    return np.where(source.targets >= 0, share[source.targets], 0.0)
