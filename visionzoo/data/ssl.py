"""The datamodule of pretraining on several views of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from visionzoo.data.dataset import SourceDataset
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.options import ViewsOptions
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.open import kind_of, open_data
from visionzoo.data.sources.reading import ImageReading, Kind, LabelReading, ReadOptions
from visionzoo.data.ssl_samples import MaskKind, ViewCollate, ViewDataset, ViewTransform, view_kinds
from visionzoo.types import ViewBatch


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
        use_labels: bool | None = None,
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
            use_labels: score held-out images by their labels, which are never learned from. None where the data have
                some: all but a folder of images without subfolders.
            kwargs: see :class:`visionzoo.data.options.ViewsOptions`.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for a path without images, or an option out of range.
        """
        options = ViewsOptions(**kwargs)
        labelled = kind_of(path) == "labels" if use_labels is None else use_labels
        kind: Kind = "labels" if labelled else "images"
        try:
            splits = open_data(path, kind, _options_of(kind, options), val_path=val_path, val_fraction=val_fraction)
            if labelled and splits.train is None:  # which is learned from without labels, where only some have them
                images = open_data(path, "images", _options_of("images", options), val_path=val_path).train
                seen = {source.sample_id(i) for source in splits.named.values() for i in range(len(source))}
                if images is not None and not any(images.sample_id(i) in seen for i in range(len(images))):
                    splits = replace(splits, train=images)
        except ValueError as error:
            if not labelled or use_labels:
                raise
            raise ValueError(f"{error}; --data.use_labels false reads no labels") from error
        super().__init__(path, options, splits, train_limit)
        #: (rows, columns) of the patches of a large view, for a model that learns from hidden ones; else None
        self.mask_grid: tuple[int, int] | None = None

    def setup(self, stage: str) -> None:
        """Also take the grid of the patches that are hidden from the model."""
        super().setup(stage)
        if self.trainer is not None:
            self.mask_grid = getattr(self.trainer.lightning_module, "mask_grid", None)

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        kinds = view_kinds(self.options, self.spec)
        transforms = [ViewTransform(kind, self.options, self.spec) for kind in kinds]
        channels = len(self.spec.mean)
        options, grid = self.options, self.mask_grid
        masks = None if grid is None else MaskKind(grid, options.mask_ratio, options.mask_probability)
        dataset = ViewDataset(source, transforms, seed=self.seed, masks=masks)
        return dataset, ViewCollate(source, [(channels, *kind.size) for kind in kinds])

    def sample_views(self, places: Sequence[int]) -> ViewBatch:
        """Views of the held-out images (training ones where none are) at some places, always the same ones."""
        source = self.val_source or self.train_source
        assert source is not None, "sample_batch has said so"
        dataset, collate = self.training_set(source)
        return collate([dataset[(0, place)] for place in places])


def _options_of(kind: Kind, options: ViewsOptions) -> ReadOptions:
    """Those of reading, of the class that belongs to the kind."""
    reading = LabelReading if kind == "labels" else ImageReading
    return reading(**{field.name: getattr(options, field.name) for field in fields(reading)})
