"""What a process under test does to itself, and writes down of itself."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from run_process import Fault, view_hash

from visionzoo import files
from visionzoo.cli.train import TrainCLI
from visionzoo.data.dataset import SourceDataset
from visionzoo.runs.memory import status_bytes


class Recorder(pl.Callback):
    """Writes down which samples each batch had, and what they looked like."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        views = view_hash(batch.images)
        line = f"{trainer.global_rank} {trainer.current_epoch} {batch_idx} {batch.index.tolist()} {views}\n"
        with (pl_module.run_folder.path / f"seen-{trainer.global_rank}.txt").open("a") as file:
            file.write(line)


class Blow(pl.Callback):
    """Sends this process the signal of a fault."""

    def __init__(self, fault: Fault, last: bool) -> None:
        self.fault, self.last = fault, last

    def _at(self, trainer: pl.Trainer, where: str) -> None:
        if where == self.fault.where and trainer.global_step == self.fault.step:
            blow(self.fault)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._at(trainer, "batch start")

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: Any) -> None:
        self._at(trainer, "gradient")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._at(trainer, "saved" if self.last else "batch end")
        if trainer.global_step >= self.fault.step and self.fault.where in ("save", "rename"):
            _break_save(self.fault)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._at(trainer, "validation")

    def on_train_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._at(trainer, "end")


class BlowLast(Blow, Checkpoint):
    """As above, after all others: Lightning calls those that save last, and so this one is of their kind."""


def blow(fault: Fault) -> None:
    os.kill(os.getpid(), fault.signal)


def _break_save(fault: Fault) -> None:
    """The next save of a checkpoint is the last thing this process does."""
    if fault.where == "rename":
        flush = files._flush

        def flushed(path: Path) -> None:
            flush(path)
            if path.suffix == ".ckpt":
                blow(fault)

        files._flush = flushed
        return

    def half(checkpoint: dict[str, Any], file: Any, *args: Any, **options: Any) -> None:
        del args, options
        file.write(b"PK\x03\x04half of a checkpoint")
        file.flush()
        blow(fault)

    torch.save = half  # type: ignore[assignment]


def _little_memory(most: int) -> None:
    """This process has no memory for the backward pass of more than so many images; it fails in its middle."""
    from visionzoo.tasks.classify import ClassifyTask

    whole = ClassifyTask.loss_parts

    def loss_parts(self: ClassifyTask, batch: Any, size: int | None) -> Any:
        for part in whole(self, batch, size):
            if part.size > most:
                first = next(p for p in self.parameters() if p.requires_grad)
                _once(first, refuse)
            yield part

    def _once(parameter: Any, refuse: Any) -> None:
        handle = parameter.register_hook(lambda _: refuse(handle))

    def refuse(handle: Any) -> None:
        handle.remove()
        raise torch.OutOfMemoryError("out of memory, says the test")

    ClassifyTask.loss_parts = loss_parts  # type: ignore[method-assign]


class Residence(pl.Callback):
    """Writes down, after each epoch, what this process and its workers hold of memory that is their own, in bytes."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        own = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        total = sum(status_bytes(pid, "RssAnon") or 0 for pid in own)
        with (pl_module.run_folder.path / "memory.txt").open("a") as file:
            file.write(f"{len(own)} {total}\n")


def _leak(size: int) -> None:
    """Every read of a sample keeps so many bytes, in the process that reads it."""
    read, kept = SourceDataset.__getitem__, []

    def leaking(self: SourceDataset, key: tuple[int, int]) -> Any:
        kept.append(os.urandom(size))
        return read(self, key)

    SourceDataset.__getitem__ = leaking  # type: ignore[method-assign]


def install(fault: Fault | None, rank: int) -> None:
    """Put the recorder, and the fault if it is this rank's, among the callbacks of the next run."""
    whole, more = TrainCLI._callbacks, list[pl.Callback]()
    if fault is not None and fault.where == "leak":
        _leak(fault.step)
        fault, more = None, [Residence()]
    if fault is not None and fault.where == "memory":
        if fault.rank == rank:
            _little_memory(fault.step)
        fault = None

    def callbacks(self: TrainCLI, bar: bool) -> list[pl.Callback]:
        mine = fault is not None and fault.rank == rank
        assert fault is not None or not mine
        early = [Blow(fault, last=False)] if mine and fault is not None else []
        late = [BlowLast(fault, last=True)] if mine and fault is not None else []
        return [Recorder(), *more, *early, *whole(self, bar), *late]

    TrainCLI._callbacks = callbacks  # type: ignore[method-assign]
