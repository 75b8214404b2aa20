"""The datamodule of pretraining on images alone."""

from __future__ import annotations

from typing import Any

from visionzoo.data.image_data import ImageData
from visionzoo.data.options import UnlabelledOptions
from visionzoo.data.sources.open import open_data


class MaeData(ImageData):
    """Images as loaders of :class:`visionzoo.types.ImageBatch`, every label -1. Labels in the data are not read."""

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        predict_path: str | list[str] | None = None,
        val_fraction: float | None = None,
        train_limit: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            path: the images: a folder with images at any depth (with or without ``train``/``val`` above them), or
                anything with labels, which are not read: ``digits``, ``shapes``, ``torchvision:CIFAR10``, class
                folders, parquet files, CSV or JSONL manifests.
            val_path: images of their own to measure the loss on.
            predict_path: images for ``predict``: a folder, a file or a list of files. None for the held-out images.
            val_fraction: where there is no validation split, the share of training images to hold out. None uses the
                test split if there is one, otherwise holds out 0.05. 0 holds none out.
            train_limit: train on this many images (whole number) or this share of them (float). None for all.
            kwargs: see :class:`visionzoo.data.options.UnlabelledOptions`.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for a path without images, or an option out of range.
        """
        options = UnlabelledOptions(**kwargs)
        splits = open_data(path, "images", options, val_path=val_path, val_fraction=val_fraction)
        super().__init__(path, options, splits, train_limit)
        self.predict_path = predict_path
