"""The datamodule of promptable segmentation."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import DataLoader

from visionzoo.data.dataset import SourceDataset
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.segment_samples import MakeView, SegmentCollate, SegmentDataset
from visionzoo.data.sources.base import Source, Splits, fingerprint
from visionzoo.data.sources.objects import ObjectSource
from visionzoo.data.sources.open_objects import open_objects
from visionzoo.data.sources.split import limited
from visionzoo.data.views import EvalView, SegmentCrop, TrainView, ViewOptions
from visionzoo.types import SegmentBatch


class SegmentationData(VisionData):
    """Images with masks as loaders of :class:`visionzoo.types.SegmentBatch`.

    A training image without an object is substituted like an unreadable one and listed as such, except in COCO's
    files, which say so beforehand: there it is left out from the start. In evaluation it stays, with no masks.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        val_fraction: float | None = None,
        train_limit: int | float | None = None,
        image_root: str | None = None,
        object_name: str = "",
        void: int | None = None,
        shapes_size: int = 128,
        masks_per_image: int = 16,
        eval_masks_per_image: int | None = None,
        min_area: int = 4,
        crop: SegmentCrop = "resize",
        jitter_scale: tuple[float, float] = (0.5, 2.0),
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.0,
        vflip: float = 0.0,
        color_jitter: float = 0.0,
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
            image_root: folder of the images of COCO files, where they do not lie beside them as COCO has it.
            object_name: what the objects of label maps are, for text prompts, such as ``nucleus``.
            void: the value of label maps that is no object, neither learned from nor scored, such as VOC's 255.
            shapes_size: pixels per edge of ``shapes``.
            masks_per_image: most objects of an image in one training step; which of more is drawn each time.
            eval_masks_per_image: most objects of an image in evaluation, drawn once. None for all.
            min_area: an object of fewer pixels, in the image or in the view, is left out and counted.
            crop: ``resize`` (as in evaluation: what a frozen encoder makes of such images is computed once and kept),
                ``scale_jitter`` (the image scaled at random, then cut or padded) or ``random_resized`` (a random
                region, stretched).
            jitter_scale: smallest and largest scale of ``crop=scale_jitter``; 1 is the size in evaluation.
            crop_scale: area of the region of ``crop=random_resized``, as a share of the image.
            crop_ratio: its width / height.
            hflip: probability of a mirror image.
            vflip: probability of an upside-down image.
            color_jitter: brightness, contrast and saturation vary by up to this share.

        Raises:
            FileNotFoundError: for a missing path; the message suggests near names.
            ValueError: for data that cannot be learned from, or an option out of range.
        """
        super().__init__(path, **kwargs)
        self.view_options = ViewOptions(
            crop=crop,
            jitter_scale=jitter_scale,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            hflip=hflip,
            vflip=vflip,
            color_jitter=color_jitter,
            masks_per_image=masks_per_image,
            min_area=min_area,
        )
        if eval_masks_per_image is not None and eval_masks_per_image < 1:
            raise ValueError(f"eval_masks_per_image={eval_masks_per_image} must be at least 1")
        self.eval_masks_per_image = eval_masks_per_image
        sets = open_objects(
            path,
            val_path=val_path,
            val_fraction=val_fraction,
            seed=self.seed,
            image_root=image_root,
            object_name=object_name,
            void=void,
            shapes_size=shapes_size,
        )
        train = sets.named.get("train")
        self.train_source: ObjectSource | None = None if train is None else limited(train, train_limit, self.seed)
        self.val_source: ObjectSource | None = sets.named.get("val")
        self.test_source = sets.named.get("test")
        #: (file, what is wrong with it) of files that were passed over when the data were opened.
        self.problems = sets.problems
        #: Training images that were left out since their annotations list no object.
        self.images_without_objects = sets.without_objects
        if sets.problems:
            listed = "; ".join(f"{name}: {reason}" for name, reason in sets.problems[:5])
            warnings.warn(f"{path}: {len(sets.problems)} faults in the files: {listed}", stacklevel=2)
        self._fingerprint: str | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """All names that objects can have, where the data list them (COCO, ``shapes``, ``object_name``)."""
        source = self.train_source or self.val_source or self.test_source
        return source.categories if source is not None else ()

    @property
    def fixed_images(self) -> bool:
        """Whether a training image looks the same in every epoch, so that its embedding can be kept."""
        o = self.view_options
        return o.crop == "resize" and not (o.hflip or o.vflip or o.color_jitter)

    def fingerprint(self) -> str:
        """A hash of which images (and, for COCO, masks) are in which split, 32 hex digits. Reads no image."""
        if self._fingerprint is None:
            splits = Splits(train=self.train_source, val=self.val_source, test=self.test_source)
            self._fingerprint = fingerprint(splits)
        return self._fingerprint

    # Loaders.

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        return self._set(source, TrainView(self.spec, self.view_options), substitute=True)

    def evaluation_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        view = EvalView(self.spec, masks_per_image=self.eval_masks_per_image, min_area=self.view_options.min_area)
        return self._set(source, view, substitute=False)

    def _set(self, source: Source, view: MakeView, substitute: bool) -> tuple[SourceDataset, Collator]:
        assert isinstance(source, ObjectSource)
        dataset = SegmentDataset(source, view, seed=self.seed, substitute=substitute)
        return dataset, SegmentCollate(self.image_shape)

    def test_dataloader(self) -> DataLoader[SegmentBatch]:
        """Every test image once, over all ranks.

        Raises:
            ValueError: if the data have no test split.
        """
        if self.test_source is None:
            raise ValueError(f"{self.path} has no test split; use validate, which scores the validation images")
        return self.evaluation_loader(self.test_source)

    def predict_dataloader(self) -> DataLoader[SegmentBatch]:
        """The validation images, in order.

        Raises:
            ValueError: if there are none.
        """
        if self.val_source is None:
            raise ValueError(f"nothing to predict: {self.path} has no validation images")
        return self.prediction_loader(self.val_source)
