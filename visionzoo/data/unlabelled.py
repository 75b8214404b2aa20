"""The datamodule of pretraining on images alone."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from visionzoo.data.augment import AugmentOptions, Crop, Decode
from visionzoo.data.dataset import Collate, ImageDataset, SourceDataset
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.sources.base import Source, Subset, fingerprint
from visionzoo.data.sources.open import open_images, open_unlabelled
from visionzoo.data.sources.split import stratified_limit
from visionzoo.data.transforms import EvalTransform, TrainTransform
from visionzoo.types import ImageBatch


class UnlabelledData(VisionData):
    """Images as loaders of :class:`visionzoo.types.ImageBatch`, every label -1. Labels in the data are not read."""

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        predict_path: str | list[str] | None = None,
        val_fraction: float | None = None,
        train_limit: int | float | None = None,
        crop: Crop = "random_resized",
        crop_scale: tuple[float, float] = (0.2, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        crop_pad: int | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        decode: Decode = "exact",
        image_column: str | None = None,
        root: str | None = None,
        download: bool = False,
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
            crop: ``random_resized`` (a random region), ``pad`` (the whole image, shifted within padding, as for CIFAR)
                or ``resize`` (as in evaluation).
            crop_scale: area of the random region, as a share of the image.
            crop_ratio: width / height of the random region.
            crop_pad: pixels of padding on each side for ``crop=pad``; None for an eighth of the input size.
            hflip: probability of a mirror image.
            vflip: probability of an upside-down image.
            decode: ``exact`` gives PIL's pixels; ``fast`` resizes random regions with OpenCV, by areas, and
                reads a JPEG at a half, a quarter or an eighth where that is still larger than the input.
            image_column: column of images or file names in tables. None for the usual names.
            root: folder of torchvision's sets. None for the user's cache.
            download: let torchvision download a set that is not there.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for a path without images, or an option out of range.
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
            policy="none",
        )
        self.predict_path = predict_path
        self.splits = open_images(
            path,
            val_path=val_path,
            val_fraction=val_fraction,
            seed=self.seed,
            image_column=image_column,
            root=root,
            download=download,
        )
        self.train_source: Source | None = self.splits.train
        self.val_source = self.splits.val
        if train_limit is not None and self.train_source is not None:
            one_stratum = self.train_source.targets * 0
            self.train_source = Subset(self.train_source, stratified_limit(one_stratum, train_limit, self.seed))
        self._fingerprint: str | None = None

    def fingerprint(self) -> str:
        """A hash of which images are in which split, 32 hex digits. Reads no image."""
        if self._fingerprint is None:
            limited = type(self.splits)(train=self.train_source, val=self.splits.val, test=self.splits.test)
            self._fingerprint = fingerprint(limited)
        return self._fingerprint

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        transform = TrainTransform(self.spec, self.augment_options)
        dataset = ImageDataset(source, transform, seed=self.seed, substitute=True)
        return dataset, Collate(source, self.image_shape)

    def evaluation_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        return ImageDataset(source, EvalTransform(self.spec), seed=self.seed), Collate(source, self.image_shape)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Every test image once, over all ranks.

        Raises:
            ValueError: if the data have no test split.
        """
        if self.splits.test is None:
            raise ValueError(f"{self.path} has no test split; use validate, which measures on the held-out images")
        return self.evaluation_loader(self.splits.test)

    def predict_dataloader(self) -> DataLoader[ImageBatch]:
        """Images of ``predict_path``; without one, the held-out images."""
        source: Source | None = self.val_source if self.predict_path is None else open_unlabelled(self.predict_path)
        if source is None:
            raise ValueError(f"nothing to predict: {self.path} has no held-out images and predict_path is not set")
        return self.prediction_loader(source)
