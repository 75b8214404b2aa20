"""The datamodule of promptable segmentation."""

from __future__ import annotations

from typing import Any

from visionzoo.data.dataset import SourceDataset
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.options import SegmentationOptions
from visionzoo.data.segment_samples import MakeView, SegmentCollate, SegmentDataset
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.objects import ObjectSource
from visionzoo.data.sources.open import open_data
from visionzoo.data.views import EvalView, TrainView


class SegmentData(VisionData):
    """Images with masks as loaders of :class:`visionzoo.types.SegmentBatch`.

    A training image without an object is substituted like an unreadable one and listed as such, except in COCO's
    files, which say so beforehand: there it is left out from the start. In evaluation it stays, with no masks.
    """

    train_source: ObjectSource | None
    val_source: ObjectSource | None
    options: SegmentationOptions

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
            path: the data: ``shapes`` or ``shapes:N`` (built in, N training pictures); an instance JSON of COCO, or a
                folder with ``instances_train.json`` etc.; a folder with ``images/`` and ``masks/`` (label maps: 0 is
                background, every other value an object); a folder of SA-1B's pairs of ``.jpg`` and ``.json``. The last
                two may lie below ``train``/``val``.
            val_path: validation data of their own, of any of these kinds.
            val_fraction: where there is no validation split, the share of training images to hold out. None uses the
                test split if there is one, otherwise holds out 0.1. 1 validates on everything, 0 on nothing.
            train_limit: train on this many images (whole number) or this share of them (float). None for all.
            kwargs: see :class:`visionzoo.data.options.SegmentationOptions`.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for data that cannot be learned from, or an option out of range.
        """
        options = SegmentationOptions(**kwargs)
        splits = open_data(path, "objects", options, val_path=val_path, val_fraction=val_fraction)
        super().__init__(path, options, splits, train_limit)
        #: Training images that were left out since their annotations list no object.
        self.images_without_objects = splits.images_without_objects

    @property
    def categories(self) -> tuple[str, ...]:
        """All names that objects can have, where the data list them (COCO, ``shapes``, ``object_name``)."""
        source: ObjectSource = self.splits.first
        return source.categories

    # Loaders.

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        return self._set(source, TrainView(self.spec, self.options), substitute=True)

    def evaluation_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        options = self.options
        view = EvalView(self.spec, masks_per_image=options.eval_masks_per_image, min_area=options.min_area)
        return self._set(source, view, substitute=False)

    def _set(self, source: Source, view: MakeView, substitute: bool) -> tuple[SourceDataset, Collator]:
        assert isinstance(source, ObjectSource)
        dataset = SegmentDataset(source, view, seed=self.seed, substitute=substitute)
        return dataset, SegmentCollate(source, self.image_shape)
