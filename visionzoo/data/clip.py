"""The datamodule of contrastive image-text training."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from visionzoo.data.clip_samples import CaptionCollate, CaptionDataset
from visionzoo.data.dataset import SourceDataset, Transform
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.options import CaptionOptions
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.captions import CaptionSource, class_templates
from visionzoo.data.sources.open import open_data, open_evaluation
from visionzoo.data.sources.readable_names import readable_names
from visionzoo.data.transforms import EvalTransform, TrainTransform


class ClipData(VisionData):
    """Captioned images as loaders of :class:`visionzoo.types.CaptionBatch`.

    Captions are read at birth, images by the workers. Where a labelled set is there for it (``zero_shot_path``, or
    classes of the validation images themselves), validation has a second loader, of
    :class:`visionzoo.types.ImageBatch`, whose labels index into ``zero_shot_classes``.
    """

    train_source: CaptionSource | None
    val_source: CaptionSource | None
    options: CaptionOptions

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        val_fraction: float | None = None,
        zero_shot_path: str | None = None,
        train_limit: int | float | None = None,
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
            kwargs: see :class:`visionzoo.data.options.CaptionOptions`.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for data that cannot be learned from, no captions, or an option out of range.
        """
        options = CaptionOptions(**kwargs)
        #: Sentences that class names are put into.
        self.templates = class_templates(options.templates)
        splits = open_data(
            path, "captions", options, val_path=val_path, val_fraction=val_fraction, templates=self.templates
        )
        super().__init__(path, options, splits, train_limit)
        #: Captions in which nothing was written; they were dropped.
        self.empty_captions = splits.empty_captions
        #: Labelled images for zero-shot accuracy, or None.
        self.zero_shot_source: Source | None = None
        if zero_shot_path is None:
            if self.val_source is not None and self.val_source.classes:
                self.zero_shot_source = self.val_source
        elif zero_shot_path != "none":
            self.zero_shot_source = open_evaluation(zero_shot_path, seed=options.seed)
            if self.zero_shot_source.multi_label:
                raise ValueError(f"zero_shot_path={zero_shot_path} has several labels an image; it needs one of each")

    @property
    def zero_shot_classes(self) -> tuple[str, ...]:
        """Names that the labels of the zero-shot images stand for, with spaces; empty without such images."""
        source = self.zero_shot_source
        return () if source is None else readable_names(source.classes)

    # Loaders.

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        return self._set(source, TrainTransform(self.spec, self.options), training=True)

    def evaluation_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        return self._set(source, EvalTransform(self.spec), training=False)

    def _set(self, source: Source, transform: Transform, training: bool) -> tuple[SourceDataset, Collator]:
        assert isinstance(source, CaptionSource)
        dataset = CaptionDataset(source, transform, one_caption=training, seed=self.seed, substitute=training)
        return dataset, CaptionCollate(source, self.image_shape)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The captioned validation images, if any; then the images for zero-shot accuracy, if any."""
        loaders = [] if self.val_source is None else [self.evaluation_loader(self.val_source)]
        if self.zero_shot_source is not None:
            loaders.append(self.evaluation_loader(self.zero_shot_source, super().evaluation_set(self.zero_shot_source)))
        return loaders
