"""Loaders over :class:`SourceDataset`, and how their workers start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Literal

from torch.utils.data import DataLoader, Sampler

from visionzoo.data.dataset import Sample, SourceDataset
from visionzoo.data.sampler import Key

StartMethod = Literal["fork", "spawn", "forkserver"]


def init_worker(_: int) -> None:
    """Runs in each worker when it starts."""
    import cv2

    # One core per worker: OpenCV's own threads would compete with the other workers, and do not survive a fork.
    cv2.setNumThreads(0)
    # Ctrl-C goes to the whole process group, and a scheduler's signals to every process of a job. The main process
    # decides; workers deliver until they are told to stop.
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _pass_over_once)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _pass_over_once(signum: int, _: FrameType | None) -> None:
    """Outlive one SIGTERM. The second is the main process's own, for a worker that does not end when told to."""
    signal.signal(signum, signal.SIG_DFL)


def _end_with_parent() -> None:
    """End this worker as soon as the main process is gone.

    Torch's own watch asks for the parent's number, which for a worker from a fork server is the server's: a killed run
    would leave such workers, and their memory, behind for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class ResumableLoader(DataLoader[Any]):
    """A loader that Lightning takes for resumable, as it is: its batch sampler asks the datamodule where to start.

    Lightning warns about any other kind when a run goes on in the middle of an epoch. There is no state here to save.
    """

    def state_dict(self) -> dict[str, Any]:
        """Empty: the datamodule knows where training stands."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing; see :meth:`state_dict`."""
        assert not state_dict


def make_loader(
    dataset: SourceDataset,
    collate: Callable[[Sequence[Sample]], Any],
    *,
    batch_sampler: Sampler[Sequence[Key]] | None = None,
    sampler: Sampler[Key] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    start_method: StartMethod | None = None,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """A loader of batches.

    Args:
        dataset: the samples.
        collate: makes a batch of a list of samples.
        batch_sampler: yields lists of keys; otherwise ``sampler`` yields keys that are taken ``batch_size`` at a time.
        sampler: see above.
        batch_size: see above.
        num_workers: processes that read images; 0 reads in this one. They live as long as the loader.
        start_method: how workers start; None for the platform's default.
        pin_memory: whether batches lie in page-locked memory.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers} must be at least 0")
    context = multiprocessing.get_context(start_method) if num_workers else None
    if context is not None and context.get_start_method() == "fork":
        dataset.source.preload()  # forked workers share what is read now; others start empty
    order: dict[str, Any] = {"sampler": sampler, "batch_size": batch_size}
    if batch_sampler is not None:
        order = {"batch_sampler": batch_sampler}
    return ResumableLoader(
        dataset,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=init_worker,
        # A worker has no memory of epochs (keys carry it), so it need not be restarted for one.
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        **order,
    )
