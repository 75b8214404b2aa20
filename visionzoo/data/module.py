"""What every datamodule shares: loaders that share samples among ranks, and the state that makes a resume exact."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from visionzoo.data.dataset import Sample, SourceDataset
from visionzoo.data.loader import StartMethod, make_loader
from visionzoo.data.sampler import EvalBatches, ShardKeys, TrainBatches, TrainOrder
from visionzoo.data.sources.base import Source
from visionzoo.types import Preprocess

Collator = Callable[[Sequence[Sample]], Any]


class VisionData(pl.LightningDataModule):
    """Loaders over sources. The model owns the input size: ``preprocess`` is taken from it in :meth:`setup`.

    A subclass sets ``train_source`` and ``val_source`` at birth, and implements :meth:`training_set`,
    :meth:`evaluation_set` and :meth:`fingerprint`. Trainers need ``use_distributed_sampler=False``: the loaders share
    samples among ranks themselves.
    """

    train_source: Source | None
    val_source: Source | None

    def __init__(
        self,
        path: str,
        *,
        batch_size: int | Literal["auto"] = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        worker_start_method: StartMethod | None = None,
        seed: int = 0,
        drop_last: bool = True,
        max_bad_share: float = 0.05,
    ) -> None:
        """
        Args:
            path: the data.
            batch_size: training images per step and process. On the command line ``auto`` measures, before a run, how
                many fit into memory.
            eval_batch_size: images per step and process in validation, test and predict. None for ``batch_size``.
            num_workers: processes that read images; 0 reads in the main one.
            worker_start_method: how they start: fork, spawn or forkserver. None for the platform's default.
            seed: of the order, the augmentation, the hold-out and the label budget.
            drop_last: leave out the last training batch of an epoch if it is not full.
            max_bad_share: the run stops when more than this share of the training images turned out to be unreadable.

        Raises:
            ValueError: for an option out of range.
        """
        super().__init__()
        if not isinstance(batch_size, int):
            raise ValueError(f"batch_size={batch_size!r} is for train.py fit, which measures it; give a number")
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if eval_batch_size is not None and eval_batch_size < 1:
            raise ValueError(f"eval_batch_size={eval_batch_size} must be at least 1")
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share={max_bad_share} must be in 0..1")
        self.path = path
        self._eval_batch_size = eval_batch_size
        self.use_batch_size(batch_size)
        self.num_workers = num_workers
        self.worker_start_method = worker_start_method
        self.seed = seed
        self.drop_last = drop_last
        self.max_bad_share = max_bad_share
        self.preprocess: Preprocess | None = None
        #: (epoch, batch) that the next training loader starts at; set by :meth:`load_state_dict`.
        self.start: tuple[int, int] = (0, 0)
        self._saved_order: dict[str, Any] | None = None

    def use_batch_size(self, batch_size: int) -> None:
        """Take this many training images per step, and per evaluation step where nobody has said otherwise."""
        self.batch_size = batch_size
        self.eval_batch_size = self._eval_batch_size or batch_size

    # What a subclass says.

    @abstractmethod
    def training_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        """Random views of ``source``, with substitutes for what cannot be read, and how they become a batch."""

    @abstractmethod
    def evaluation_set(self, source: Source) -> tuple[SourceDataset, Collator]:
        """``source`` as it is evaluated."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of which samples are in which split, 32 hex digits. Reads no image."""

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
            raise ValueError(f"{self.path} has no training images (only images to evaluate on)")
        rank, world_size = self.ranks()
        return TrainOrder(
            len(self.train_source),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            drop_last=self.drop_last,
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
        return self.loader(self.training_set(self.train_source), batch_sampler=TrainBatches(order, self._position))

    def evaluation_loader(self, source: Source, parts: tuple[SourceDataset, Collator] | None = None) -> DataLoader[Any]:
        """Every sample of ``source`` once, over all ranks, as ``parts`` say; None for :meth:`evaluation_set`."""
        batches = EvalBatches(len(source), self.eval_batch_size, *self.ranks())
        return self.loader(parts or self.evaluation_set(source), batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Every validation image once, over all ranks; no loader if there are none."""
        return [] if self.val_source is None else self.evaluation_loader(self.val_source)

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
            "drop_last": self.drop_last,
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
