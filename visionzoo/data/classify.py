"""The datamodule of image classification."""

from __future__ import annotations

from typing import Any

import numpy as np

from visionzoo.data.image_data import ImageData
from visionzoo.data.options import ClassificationOptions
from visionzoo.data.sources.base import Source, Splits, class_counts
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.split import limited, split_by_file


class ClassifyData(ImageData):
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
        dev_fraction: float = 0.0,
        train_limit: int | float | None = None,
        balanced_sampling: bool = False,
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
            dev_fraction: hold out this share of the training images, stratified, to choose epoch and recipe by. They
                take the place of the validation images, which become the test images, to be scored once by ``test``.
            train_limit: a label budget: train on this many images (whole number) or this share of them (float), every
                class by its share. None for all.
            balanced_sampling: draw training images so that all classes are equally frequent (with replacement).
            kwargs: see :class:`visionzoo.data.options.ClassificationOptions`.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for data that cannot be learned from, or an option out of range.
        """
        options = ClassificationOptions(**kwargs)
        splits = open_data(path, "labels", options, val_path=val_path, val_fraction=val_fraction)
        if dev_fraction:
            splits, train_limit = with_dev_split(splits, dev_fraction, train_limit, options.seed, path), None
        super().__init__(path, options, splits, train_limit)
        self.predict_path = predict_path
        self.balanced_sampling = balanced_sampling

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

    def sampling_weights(self) -> np.ndarray | None:
        if not self.balanced_sampling:
            return None
        assert self.train_source is not None
        return balanced_weights(self.train_source)

    def order_identity(self) -> dict[str, int | bool | str]:
        return {**super().order_identity(), "balanced_sampling": self.balanced_sampling}


def with_dev_split(
    splits: Splits[Source], fraction: float, train_limit: int | float | None, seed: int, path: str
) -> Splits[Source]:
    """Splits whose validation images are held out of the training images, and whose test images are the validation
    images that there were, else the test images.

    Args:
        splits: as the data have them.
        fraction: share of the training images, in [0, 1).
        train_limit: see :class:`ClassifyData`; those that are held out count.
        seed: of both choices.
        path: the data, for messages.

    Raises:
        ValueError: for a fraction out of range, or without training images.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"dev_fraction={fraction} must be in [0, 1); 0 keeps the validation images as they are")
    if splits.train is None:
        raise ValueError(f"dev_fraction={fraction}: {path} has no training images to hold some out of")
    train = limited(splits.train, train_limit, seed)
    kept, held = split_by_file(train, fraction, seed)
    if not len(held):
        raise ValueError(f"dev_fraction={fraction} of {len(train):,} training images is none; give more of either")
    return splits.with_splits(
        {
            "train": train.take(kept),
            "val": train.take(held),
            **({} if (test := splits.val or splits.test) is None else {"test": test}),
        }
    )


def balanced_weights(source: Source) -> np.ndarray:
    """(N,) sampling weights under which every class is equally frequent.

    In multi-label data a sample weighs as much as its rarest label, and one without labels as the most frequent label.
    """
    share = 1.0 / np.maximum(class_counts(source), 1)
    if source.multi_label:
        weights = np.where(source.targets > 0, share[None, :], 0.0).max(axis=1)
        return np.where(weights > 0, weights, share.min())
    return np.where(source.targets >= 0, share[source.targets], 0.0)
