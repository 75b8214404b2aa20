"""Which samples make up which batch: pure functions of (seed, epoch, step, rank, world size).

Nothing here has a state to save. Whoever resumes says at which epoch and batch to go on.

Legend: N samples, B batch size per rank, W ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

#: What batches are made of: (epoch, index), or (epoch, index, n) for a sample that is drawn for the n-th time again.
Key = tuple[int, ...]


class TrainOrder:
    """The training batches of every epoch.

    Batch ``s`` of all ranks together is one slice of the epoch's order, so W ranks of B samples see in each step what
    one rank of W * B would.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        weights: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            num_samples: N.
            batch_size: B, per rank.
            seed: of the order.
            rank, world_size: which share this process takes.
            drop_last: leave out the last step of an epoch if it is not full (unless it is the only one). Otherwise it
                is kept, and filled from the start of the order only as far as every rank needs to get equally many.
            weights: (N,) relative chance of each sample; an epoch is then N draws with replacement. None: each sample
                once.

        Raises:
            ValueError: for no samples, a batch size below 1, or weights that are not N numbers, some above 0 and none
                below.
        """
        if num_samples < 1 or batch_size < 1:
            raise ValueError(
                f"need samples and a batch size of at least 1, got {num_samples} and batch_size={batch_size}"
            )
        if weights is not None and (len(weights) != num_samples or weights.min() < 0 or weights.sum() <= 0):
            raise ValueError(f"need {num_samples} sampling weights, none below 0 and some above, got {len(weights)}")
        assert 0 <= rank < world_size
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.chances = None if weights is None else weights / weights.sum()
        per_step = batch_size * world_size
        full = num_samples // per_step
        self.num_batches = full if drop_last and full else math.ceil(num_samples / per_step)

    def __len__(self) -> int:
        return self.num_batches

    def order(self, epoch: int) -> np.ndarray:
        """(N,) int64, the order of samples in an epoch, over all ranks."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.chances is None:
            return rng.permutation(self.num_samples)
        return rng.choice(self.num_samples, size=self.num_samples, p=self.chances)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[Key]]:
        """This rank's batches of an epoch, from batch ``start`` on."""
        order = self.order(epoch)
        order = np.concatenate([order, np.resize(order, -len(order) % self.world_size)])
        again = _repeats(order)
        per_step = self.batch_size * self.world_size
        for step in range(start, self.num_batches):
            first = step * per_step
            size = min(per_step, len(order) - first) // self.world_size
            own = slice(first + self.rank * size, first + (self.rank + 1) * size)
            yield [
                (epoch, i, n) if n else (epoch, i)
                for i, n in zip(order[own].tolist(), again[own].tolist(), strict=True)
            ]


def _repeats(order: np.ndarray) -> np.ndarray:
    """How often each element stood earlier in the array."""
    places = order.argsort(kind="stable")
    ordered = order[places]
    first = np.searchsorted(ordered, ordered)
    repeats = np.empty_like(order)
    repeats[places] = np.arange(len(order)) - first
    return repeats


class TrainBatches(Sampler[list[Key]]):
    """The batch sampler of a training loader. Asks where to start each time it is iterated."""

    def __init__(self, order: TrainOrder, position: Callable[[], tuple[int, int]]) -> None:
        """
        Args:
            order: the batches.
            position: returns (epoch, first batch).
        """
        self.order = order
        self.position = position

    def __len__(self) -> int:
        """Batches of a whole epoch, also when resuming in its middle: Lightning counts from there."""
        return len(self.order)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start = self.position()
        return self.order.batches(epoch, start)


class ShardKeys(Sampler[Key]):
    """Every sample once over all ranks, in order: rank r takes r, r + W, r + 2W, ... under epoch 0."""

    def __init__(self, num_samples: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        return ((0, i) for i in self.indices)


class EvalBatches(Sampler[list[Key]]):
    """Evaluation batches: no sample twice, and equally many batches on every rank.

    A rank that has run out yields empty batches, since a forward pass of a sharded model (FSDP) needs all ranks.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        """Raises ValueError for a batch size below 1."""
        if batch_size < 1:
            raise ValueError(f"eval_batch_size={batch_size} must be at least 1")
        self.keys = list(ShardKeys(num_samples, rank, world_size))
        self.batch_size = batch_size
        self.num_batches = math.ceil(math.ceil(num_samples / world_size) / batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.num_batches):
            yield self.keys[step * self.batch_size : (step + 1) * self.batch_size]
