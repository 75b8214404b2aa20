"""The datamodule of pretraining on several views of each image."""

from __future__ import annotations

from typing import Any

from visionzoo.data.dataset import SourceDataset
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.options import ViewsOptions
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.open import open_data
from visionzoo.data.ssl_samples import ViewCollate, ViewDataset, ViewTransform, view_kinds


class SslData(VisionData):
    """Training images as loaders of :class:`visionzoo.types.ViewBatch`, held-out ones as they are evaluated.

    Labels are never learned from. Where the data have them, held-out images are scored by them.
    """

    options: ViewsOptions

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        val_fraction: float | None = None,
        train_limit: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            path: the images: a folder with images at any depth, or anything with labels (``digits``,
                ``torchvision:CIFAR10``, class folders, parquet files, manifests).
            val_path: held-out images of their own.
            val_fraction: where there is no validation split, the share of training images to hold out. None uses the
                test split if there is one, otherwise holds out 0.2 of labelled images, 0.05 of others. 0 holds none
                out.
            train_limit: train on this many images (whole number) or this share of them (float). None for all.
            kwargs: see :class:`visionzoo.data.options.ViewsOptions`.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for a path without images, or an option out of range.
        """
        options = ViewsOptions(**kwargs)
        splits = open_data(path, "images", options, val_path=val_path, val_fraction=val_fraction)
        super().__init__(path, options, splits, train_limit)

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        kinds = view_kinds(self.options, self.spec)
        transforms = [ViewTransform(kind, self.options, self.spec) for kind in kinds]
        channels = len(self.spec.mean)
        dataset = ViewDataset(source, transforms, seed=self.seed)
        return dataset, ViewCollate(source, [(channels, *kind.size) for kind in kinds])
