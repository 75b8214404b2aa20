"""The datamodule of image classification: every option in one place, and the state that makes a resume exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from visionzoo.data.augment import AugmentOptions, Crop, Policy
from visionzoo.data.dataset import Collate, ImageDataset, Transform
from visionzoo.data.loader import StartMethod, make_loader
from visionzoo.data.sampler import EvalBatches, ShardKeys, TrainBatches, TrainOrder
from visionzoo.data.sources.base import Source, Subset, class_counts, fingerprint
from visionzoo.data.sources.open import open_splits, open_unlabelled
from visionzoo.data.sources.split import stratified_limit
from visionzoo.data.transforms import EvalTransform, TrainTransform
from visionzoo.types import ImageBatch, Preprocess


class ClassificationData(pl.LightningDataModule):
    """Labelled images as loaders of :class:`visionzoo.types.ImageBatch`.

    Labels are read at birth, so ``classes``, ``num_classes``, ``multi_label`` and ``class_counts`` are known right
    away. Images are read by the workers. The model owns the input size: ``preprocess`` is taken from it in
    :meth:`setup`, unless it was set before. Trainers need ``use_distributed_sampler=False``: the loaders share samples
    among ranks themselves.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        predict_path: str | list[str] | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        worker_start_method: StartMethod | None = None,
        seed: int = 0,
        val_fraction: float | None = None,
        train_limit: int | float | None = None,
        balanced_sampling: bool = False,
        drop_last: bool = True,
        max_bad_share: float = 0.05,
        crop: Crop = "random_resized",
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        crop_pad: int | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
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
    ) -> None:
        """
        Args:
            path: the data: ``digits`` or ``shapes`` (built in), ``torchvision:CIFAR10``, a folder of class folders
                (with or without ``train``/``val`` above them), parquet files, or a CSV or JSONL manifest.
            val_path: validation data of their own, of any of these kinds.
            predict_path: images without labels for ``predict``: a folder, a file or a list of files. None predicts the
                validation images.
            batch_size: training images per step and process.
            eval_batch_size: images per step and process in validation, test and predict. None for ``batch_size``.
            num_workers: processes that read images; 0 reads in the main one.
            worker_start_method: how they start: fork, spawn or forkserver. None for the platform's default.
            seed: of the order, the augmentation, the hold-out and the label budget.
            val_fraction: where there is no validation split, the share of training images to hold out, stratified. None
                uses the test split if there is one, otherwise holds out 0.2. 1 validates on everything, 0 on nothing.
            train_limit: a label budget: train on this many images (whole number) or this share of them (float), every
                class by its share. None for all.
            balanced_sampling: draw training images so that all classes are equally frequent (with replacement).
            drop_last: leave out the last training batch of an epoch if it is not full.
            max_bad_share: the run stops when more than this share of the training images turned out to be unreadable.
            crop: ``random_resized`` (a random region), ``pad`` (the whole image, shifted within padding, as for CIFAR)
                or ``resize`` (as in evaluation).
            crop_scale: area of the random region, as a share of the image.
            crop_ratio: width / height of the random region.
            crop_pad: pixels of padding on each side for ``crop=pad``; None for an eighth of the input size.
            hflip: probability of a mirror image.
            vflip: probability of an upside-down image.
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
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if eval_batch_size is not None and eval_batch_size < 1:
            raise ValueError(f"eval_batch_size={eval_batch_size} must be at least 1")
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share={max_bad_share} must be in 0..1")
        self.augment_options = AugmentOptions(
            crop=crop,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            crop_pad=crop_pad,
            hflip=hflip,
            vflip=vflip,
            policy=policy,
            magnitude=magnitude,
            num_ops=num_ops,
            color_jitter=color_jitter,
            erasing=erasing,
        )
        self.path = path
        self.predict_path = predict_path
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.worker_start_method = worker_start_method
        self.seed = seed
        self.balanced_sampling = balanced_sampling
        self.drop_last = drop_last
        self.max_bad_share = max_bad_share
        self.preprocess: Preprocess | None = None
        #: (epoch, batch) that the next training loader starts at; set by :meth:`load_state_dict`.
        self.start: tuple[int, int] = (0, 0)
        self._saved_order: dict[str, Any] | None = None

        self.splits = open_splits(
            path,
            val_path=val_path,
            val_fraction=val_fraction,
            seed=seed,
            classes=classes,
            image_column=image_column,
            label_column=label_column,
            root=root,
            download=download,
        )
        self.train_source: Source | None = self.splits.train
        if train_limit is not None and self.train_source is not None:
            chosen = stratified_limit(self.train_source.targets, train_limit, seed)
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

    def setup(self, stage: str) -> None:
        """Take the input size from the model. Lightning restores the state, if any, after this."""
        if self.preprocess is None:
            model = self.trainer.lightning_module if self.trainer is not None else None
            spec = getattr(model, "preprocess", None)
            if spec is not None and not isinstance(spec, Preprocess):
                raise ValueError(f"the model's preprocess is {type(spec).__name__}; need visionzoo.Preprocess")
            self.preprocess = spec
        if stage == "fit":
            self.start, self._saved_order = (0, 0), None

    def _ranks(self) -> tuple[int, int]:
        """(rank, world size)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _spec(self) -> Preprocess:
        if self.preprocess is None:
            raise ValueError(
                "ClassificationData.preprocess is not set; set it, or give the trainer a model that has one"
            )
        return self.preprocess

    def _loader(
        self, source: Source, transform: Transform, *, training: bool = False, **order: Any
    ) -> DataLoader[ImageBatch]:
        spec = self._spec()
        return make_loader(
            ImageDataset(source, transform, seed=self.seed, substitute=training),
            Collate(source, (len(spec.mean), *spec.image_size)),
            num_workers=self.num_workers,
            start_method=self.worker_start_method,
            pin_memory=torch.cuda.is_available(),
            **order,
        )

    def train_order(self) -> TrainOrder:
        """The training batches of this rank, epoch by epoch.

        Raises:
            ValueError: if there are no training images.
        """
        if self.train_source is None:
            raise ValueError(
                f"{self.path} has no training images (only {', '.join(n for n, _ in self.splits.items())})"
            )
        rank, world_size = self._ranks()
        return TrainOrder(
            len(self.train_source),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            drop_last=self.drop_last,
            weights=balanced_weights(self.train_source) if self.balanced_sampling else None,
        )

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        """Training batches, from where a restored state says.

        Raises:
            ValueError: without training images; or in the middle of an epoch, if anything its order depends on has
                changed.
        """
        order = self.train_order()
        self._check_order()
        assert self.train_source is not None
        transform = TrainTransform(self._spec(), self.augment_options)
        return self._loader(
            self.train_source, transform, training=True, batch_sampler=TrainBatches(order, self._position)
        )

    def _eval_loader(self, source: Source) -> DataLoader[ImageBatch]:
        batches = EvalBatches(len(source), self.eval_batch_size, *self._ranks())
        return self._loader(source, EvalTransform(self._spec()), batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[ImageBatch] | list[DataLoader[ImageBatch]]:
        """Every validation image once, over all ranks; no loader if there are none."""
        return [] if self.splits.val is None else self._eval_loader(self.splits.val)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Every test image once, over all ranks.

        Raises:
            ValueError: if the data have no test split.
        """
        if self.splits.test is None:
            raise ValueError(f"{self.path} has no test split; use validate, which scores the validation images")
        return self._eval_loader(self.splits.test)

    def predict_dataloader(self) -> DataLoader[ImageBatch]:
        """Images of ``predict_path``, labels -1; without one, the validation images."""
        source: Source | None = self.splits.val if self.predict_path is None else open_unlabelled(self.predict_path)
        if source is None:
            raise ValueError(f"nothing to predict: {self.path} has no validation images and predict_path is not set")
        # Lightning wraps the batch sampler of a predict loader, and knows how for a plain one only.
        keys = ShardKeys(len(source), *self._ranks())
        return self._loader(source, EvalTransform(self._spec()), sampler=keys, batch_size=self.eval_batch_size)

    # Resuming. Lightning stores no order, and iterates the loader before it knows the epoch.

    def _position(self) -> tuple[int, int]:
        """(epoch, first batch) for an iteration of the training loader that begins now."""
        epoch = self.trainer.current_epoch if self.trainer is not None else self.start[0]
        # Pure in the trainer's epoch, since Lightning may call iter() more than once before the first batch, and once
        # under the old epoch's number after a checkpoint at its end.
        return self.start if epoch <= self.start[0] else (epoch, 0)

    def _progress(self) -> tuple[int, int]:
        """(epoch, batches trained of it), normalised so that a finished epoch is the next one at batch 0."""
        if self.trainer is None:
            return self.start
        loop = self.trainer.fit_loop
        begun: Any = loop.epoch_progress.current
        if begun.ready == 0:
            return self.start
        epoch = begun.ready - 1
        if begun.started < begun.ready:  # announced, not begun; the batch counter is still the last epoch's
            return epoch, 0
        # "processed" counts a batch before on_train_batch_end, where checkpoints are written; "completed" after it.
        batches: Any = loop.epoch_loop.batch_progress.current
        done = batches.processed
        return (epoch, done) if done < self.trainer.num_training_batches else (epoch + 1, 0)

    def _order_identity(self) -> dict[str, int | bool | str]:
        """What the order of batches depends on, beside epoch and step."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self._ranks()[1],
            "drop_last": self.drop_last,
            "balanced_sampling": self.balanced_sampling,
            "data": self.fingerprint(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, for Lightning's checkpoint. Plain types only."""
        epoch, batch = self._progress()
        return {"epoch": epoch, "batch": batch, "order": self._order_identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stood: the next training loader yields exactly the batches that were left."""
        self.start = (state_dict["epoch"], state_dict["batch"])
        self._saved_order = dict(state_dict["order"])

    def _check_order(self) -> None:
        """Refuse to go on in the middle of an epoch whose order has changed."""
        epoch, batch = self.start
        then, now = self._saved_order, self._order_identity()
        if not batch or then is None or then == now:
            return
        changed = [
            f"{name} was {then.get(name)} and is {value}" for name, value in now.items() if then.get(name) != value
        ]
        raise ValueError(
            f"cannot go on at batch {batch} of epoch {epoch}: {'; '.join(changed)}. "
            "Resume with what the run had, or start a new run from its weights"
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
