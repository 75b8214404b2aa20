"""What the data modules of images without captions or masks share."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from visionzoo.data.augment import AugmentOptions
from visionzoo.data.dataset import Collate, ImageDataset, SourceDataset
from visionzoo.data.module import Collator, VisionData
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.folder import open_unlabelled
from visionzoo.data.transforms import TrainTransform


class ImageData(VisionData):
    """Images, labelled or not, as loaders of :class:`visionzoo.types.ImageBatch`."""

    #: Images of their own for ``predict``: a folder, a file or a list of files.
    predict_path: str | list[str] | None

    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        assert isinstance(self.options, AugmentOptions)
        transform = TrainTransform(self.spec, self.options)
        dataset = ImageDataset(source, transform, seed=self.seed, substitute=True)
        return dataset, Collate(source, self.image_shape)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Images of ``predict_path``, labels -1; without one, the validation images.

        Raises:
            ValueError: if there are neither.
        """
        if self.predict_path is not None:
            return self.prediction_loader(open_unlabelled(self.predict_path))
        if self.val_source is None:
            raise ValueError(f"nothing to predict: {self.path} has no validation images and predict_path is not set")
        return self.prediction_loader(self.val_source)
