"""What every datamodule shares: loaders that share samples among ranks, and the state that makes a resume exact."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from visionzoo.data.dataset import Collate, ImageDataset, Sample, SourceDataset
from visionzoo.data.loader import make_loader
from visionzoo.data.options import LoaderOptions
from visionzoo.data.sampler import EvalBatches, ShardKeys, TrainBatches, TrainOrder
from visionzoo.data.sources.base import Source, Splits, fingerprint
from visionzoo.data.sources.split import limited
from visionzoo.data.transforms import EvalTransform
from visionzoo.types import Preprocess

Collator = Callable[[Sequence[Sample]], Any]


class VisionData(pl.LightningDataModule):
    """Loaders over sources. The model owns the input size: ``preprocess`` is taken from it in :meth:`setup`.

    A subclass opens its data at birth, and implements :meth:`training_set`. Trainers need
    ``use_distributed_sampler=False``: the loaders share samples among ranks themselves.
    """

    train_source: Source | None
    val_source: Source | None
    test_source: Source | None

    def __init__(
        self,
        path: str,
        options: LoaderOptions,
        splits: Splits[Any],
        train_limit: int | float | None = None,
    ) -> None:
        """
        Args:
            path: the data, for messages.
            options: how they are loaded.
            splits: what :func:`visionzoo.data.sources.open.open_data` has found there.
            train_limit: train on this many images (whole number) or this share of them (float), every class by its
                share. None for all.

        Raises:
            ValueError: for a limit out of range.
        """
        super().__init__()
        self.path = path
        self.options = options
        assert isinstance(options.batch_size, int)
        self.use_batch_size(options.batch_size)
        self.num_workers = options.num_workers
        self.seed = options.seed
        self.max_bad_share = options.max_bad_share
        self.train_source = None if splits.train is None else limited(splits.train, train_limit, options.seed)
        self.val_source, self.test_source = splits.val, splits.test
        #: (file, what is wrong with it) of files that were passed over when the data were opened, such as shards.
        self.problems = splits.problems
        if splits.problems:
            listed = "; ".join(f"{name}: {reason}" for name, reason in splits.problems[:5])
            warnings.warn(f"{path}: {len(splits.problems)} faults in the files: {listed}", stacklevel=2)
        self._fingerprint: str | None = None
        self.preprocess: Preprocess | None = None
        #: (epoch, batch) that the next training loader starts at; set by :meth:`load_state_dict`.
        self.start: tuple[int, int] = (0, 0)
        self._saved_order: dict[str, Any] | None = None

    @property
    def splits(self) -> Splits[Any]:
        """What there is to train and to evaluate on."""
        return Splits(train=self.train_source, val=self.val_source, test=self.test_source)

    @property
    def fixed_images(self) -> bool:
        """Whether the views of a training image come again, so that what frozen layers make of them can be kept."""
        return bool(getattr(self.options, "comes_again", False))  # readers of others may not say

    def fingerprint(self) -> str:
        """A hash of which samples with which labels, captions or masks are in which split, 32 hex digits. Reads no
        image."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.splits)
        return self._fingerprint

    def use_batch_size(self, batch_size: int) -> None:
        """Take this many training images per step, and per evaluation step where nobody has said otherwise."""
        self.batch_size = batch_size
        self.eval_batch_size = self.options.eval_batch_size or batch_size

    # What a subclass says.

    @abstractmethod
    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        """Random views of ``source``, with substitutes for what cannot be read, and how they become a batch."""

    def evaluation_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        """``source`` as it is evaluated: images, with their labels where there are some."""
        return ImageDataset(source, EvalTransform(self.spec), seed=self.seed), Collate(source, self.image_shape)

    def sampling_weights(self) -> np.ndarray | None:
        """(N,) relative chance of each training sample; None takes each once an epoch."""
        return None

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

    @property
    def spec(self) -> Preprocess:
        """How the model wants its images.

        Raises:
            ValueError: if nobody has said it yet.
        """
        if self.preprocess is None:
            raise ValueError(
                f"{type(self).__name__}.preprocess is not set; set it, or give the trainer a model that has one"
            )
        return self.preprocess

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image in a batch."""
        return (len(self.spec.mean), *self.spec.image_size)

    def ranks(self) -> tuple[int, int]:
        """(rank, world size)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def loader(self, parts: tuple[SourceDataset, Collator], **order: Any) -> DataLoader[Any]:
        """A loader of a data set and its collation in the given order, see :func:`make_loader`."""
        return make_loader(
            *parts,
            num_workers=self.num_workers,
            start_method=self.options.worker_start_method,
            pin_memory=torch.cuda.is_available(),
            **order,
        )

    def train_order(self) -> TrainOrder:
        """The training batches of this rank, epoch by epoch.

        Raises:
            ValueError: if there are no training images.
        """
        if self.train_source is None:
            raise ValueError(f"{self.path} has no training images (only images to evaluate on)")
        rank, world_size = self.ranks()
        return TrainOrder(
            len(self.train_source),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            drop_last=self.options.drop_last,
            weights=self.sampling_weights(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches, from where a restored state says.

        Raises:
            ValueError: without training images; or in the middle of an epoch, if anything its order depends on has
                changed.
        """
        order = self.train_order()
        self._check_order()
        assert self.train_source is not None
        dataset, collate = self.training_set(self.train_source)
        dataset.views = getattr(self.options, "fixed_views", None)
        return self.loader((dataset, collate), batch_sampler=TrainBatches(order, self._position))

    def evaluation_loader(self, source: Source, parts: tuple[SourceDataset, Collator] | None = None) -> DataLoader[Any]:
        """Every sample of ``source`` once, over all ranks, as ``parts`` say; None for :meth:`evaluation_set`."""
        batches = EvalBatches(len(source), self.eval_batch_size, *self.ranks())
        return self.loader(parts or self.evaluation_set(source), batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Every validation image once, over all ranks; no loader if there are none."""
        return [] if self.val_source is None else self.evaluation_loader(self.val_source)

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test image once, over all ranks.

        Raises:
            ValueError: if the data have no test split.
        """
        if self.test_source is None:
            raise ValueError(f"{self.path} has no test split; use validate, which scores the validation images")
        return self.evaluation_loader(self.test_source)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The validation images, in order.

        Raises:
            ValueError: if there are none.
        """
        if self.val_source is None:
            raise ValueError(f"nothing to predict: {self.path} has no validation images")
        return self.prediction_loader(self.val_source)

    def prediction_loader(self, source: Source) -> DataLoader[Any]:
        """Every sample of ``source`` once, over all ranks, for ``predict``."""
        # Lightning wraps the batch sampler of a predict loader, and knows how for a plain one only.
        keys = ShardKeys(len(source), *self.ranks())
        return self.loader(self.evaluation_set(source), sampler=keys, batch_size=self.eval_batch_size)

    def sample_batch(self, count: int) -> Any:
        """One batch of up to ``count`` held-out samples (training ones where none are), evenly spaced: for pictures."""
        source = self.val_source or self.train_source
        if source is None:
            raise ValueError(f"{self.path} has no images")
        dataset, collate = self.evaluation_set(source)
        places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
        return collate([dataset[(0, int(i))] for i in places])

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

    def order_identity(self) -> dict[str, int | bool | str]:
        """What the order of batches depends on, beside epoch and step."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self.ranks()[1],
            "drop_last": self.options.drop_last,
            "data": self.fingerprint(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, for Lightning's checkpoint. Plain types only."""
        epoch, batch = self._progress()
        return {"epoch": epoch, "batch": batch, "order": self.order_identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stood: the next training loader yields exactly the batches that were left."""
        self.start = (state_dict["epoch"], state_dict["batch"])
        self._saved_order = dict(state_dict["order"])

    def _check_order(self) -> None:
        """Refuse to go on in the middle of an epoch whose order has changed."""
        epoch, batch = self.start
        then, now = self._saved_order, self.order_identity()
        if not batch or then is None or then == now:
            return
        changed = [
            f"{name} was {then.get(name)} and is {value}" for name, value in now.items() if then.get(name) != value
        ]
        raise ValueError(
            f"cannot go on at batch {batch} of epoch {epoch}: {'; '.join(changed)}. "
            "Resume with what the run had, or start a new run from its weights"
        )
