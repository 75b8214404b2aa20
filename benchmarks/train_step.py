"""What a training step costs beside the step: a plain Trainer, and all of ``train.py``, against the bare loop.

    python benchmarks/train_step.py --threads 1

A classify step of a model so small that Python is what costs. The bare loop is normalise, forward, cross-entropy,
backward, fused AdamW on the same batch. ``plain Trainer`` is Lightning's own with our task and no callbacks of ours;
``train.py`` is everything that the command adds: progress bar, guard, moving average, ``metrics.csv``, saving, seeding.
Data are left out on both sides: the batch is there already. The bare steps run between the steps of the Trainer, in
blocks that take turns. Validation and the end of epochs are not part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Record, Timing, clock_of, machine, speedup, table
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from visionzoo.backbones import backbone_info
from visionzoo.cli.train import TrainCLI
from visionzoo.models.classifier import create_classifier
from visionzoo.models.preprocess import Normalize
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.types import ImageBatch

CLASSES = 6  #: those of the built-in shapes
OPTIMIZER = {"lr": 1e-4, "weight_decay": 0.05}


def make_batch(args: argparse.Namespace) -> ImageBatch:
    """Random images with labels."""
    size = backbone_info(args.backbone).image_size
    side = size if isinstance(size, int) else size[0]
    images = torch.randint(0, 256, (args.batch, 3, side, side), dtype=torch.uint8)
    return ImageBatch(images, torch.arange(args.batch) % CLASSES, torch.arange(args.batch))


def bare_loop(args: argparse.Namespace, batch: ImageBatch) -> Callable[[], None]:
    """One step of the loop that a person would write."""
    model = create_classifier(args.backbone, num_classes=CLASSES).train()
    normalize = Normalize(model.preprocess)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **OPTIMIZER)

    def step() -> None:
        loss = F.cross_entropy(model(normalize(batch.images)).float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class Clock(Callback):
    """Times blocks of the Trainer's steps, and between them as many bare ones."""

    def __init__(self, bare: Callable[[], None], block: int) -> None:
        self.bare, self.block = bare, block
        self.ours, self.theirs = Timing(), Timing()
        self._begun = (0.0, 0.0)
        self._steps = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        del trainer, pl_module, args
        self._steps += 1
        if self._steps % self.block:
            return
        if self._steps > self.block:  # the first block warms up
            _add(self.ours, self._begun, self.block)
        for count in (3, self.block):  # a few first: caches are warm for both
            begun = _now()
            for _ in range(count):
                self.bare()
        if self._steps > self.block:
            _add(self.theirs, begun, self.block)
        self._begun = _now()


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _add(timing: Timing, begun: tuple[float, float], steps: int) -> None:
    wall, cpu = _now()
    timing.wall.append((wall - begun[0]) / steps)
    timing.cpu.append((cpu - begun[1]) / steps)


def loader(batch: ImageBatch, args: argparse.Namespace) -> DataLoader[Any]:
    """The same batch for as many steps as are timed."""
    return DataLoader([batch] * (args.block * (args.rounds + 1)), batch_size=None)  # type: ignore[arg-type]


def plain_trainer(args: argparse.Namespace, clock: Clock, batch: ImageBatch) -> None:
    """Our task under Lightning's own Trainer."""
    task = ClassifyTask(num_classes=CLASSES, backbone=args.backbone, **OPTIMIZER)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[clock],
    )  # fmt: skip
    trainer.fit(task, loader(batch, args))


class BenchCLI(TrainCLI):
    """The command, on batches that are there already.

    Args:
        args: of the benchmark.
        clock: times its steps.
        batch: the one batch.
        folder: of the run.
    """

    def __init__(self, args: argparse.Namespace, clock: Clock, batch: ImageBatch, folder: Path) -> None:
        self.args, self.clock, self.batch = args, clock, batch
        options = {
            **{f"model.{name}": value for name, value in OPTIMIZER.items()},
            "model.backbone": args.backbone, "model.ema_decay": 0.99, "data.path": "shapes:64", "data.num_workers": 0,
            "data.batch_size": args.batch, "trainer.max_epochs": 1, "trainer.accelerator": "cpu",
            "run_dir": folder / "run",
        }  # fmt: skip
        super().__init__("classify", "fit", [f"--{k}={v}" for k, v in options.items()], "train.py")

    def _callbacks(self, bar: bool) -> list[Callback]:
        return [*super()._callbacks(bar), self.clock]

    def before_fit(self) -> None:
        super().before_fit()
        data, ready = self.datamodule, loader(self.batch, self.args)
        data.train_dataloader, data.val_dataloader = lambda: ready, lambda: []  # noqa: PIE807 - Lightning looks at its code


class Terminal(io.StringIO):
    """Output that nobody reads, of a kind that gets a progress bar."""

    def isatty(self) -> bool:
        return True


def everything(args: argparse.Namespace, clock: Clock, batch: ImageBatch) -> None:
    """All that ``train.py classify fit`` does beside loading data."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(Terminal()):
        BenchCLI(args, clock, batch, Path(folder))


def measure(args: argparse.Namespace, run: Callable[..., None], title: str) -> dict[str, Any]:
    """One row: how many times the bare loop's time a step takes."""
    batch = make_batch(args)
    clock = Clock(bare_loop(args, batch), args.block)
    run(args, clock, batch)
    cases = {title: clock.ours, "bare loop": clock.theirs}
    ratio = {c: speedup(getattr(clock.theirs, c), getattr(clock.ours, c)) for c in ("wall", "cpu")}
    milliseconds = {name: 1e3 * t.summary()["cpu"]["median"] for name, t in cases.items()}
    shown = [f"{ratio[c]['median']:.3f} ({ratio[c]['low']:.3f}-{ratio[c]['high']:.3f})" for c in ("wall", "cpu")]
    print(
        table(
            ["case", "ms of CPU", "times the bare loop, wall", "cpu"], [[title, f"{milliseconds[title]:.3f}", *shown]]
        )
    )
    return {
        "clock": clock_of("cpu"),
        "reference": "bare loop",
        "times_the_bare_loop": ratio,
        "cases": {
            name: {
                "seconds": t.summary(),
                "speedup": {c: speedup(getattr(t, c), getattr(clock.theirs, c)) for c in ("wall", "cpu")},
            }
            for name, t in cases.items()
        },
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_nano_patch4_32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--block", type=int, default=50, help="steps in a row of each side")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = Record("train-step-cpu", {"machine": machine(), "arguments": vars(args)}, args.out)
    for title, run in {"plain Trainer": plain_trainer, "train.py": everything}.items():
        record.row(title, lambda run=run, title=title: measure(args, run, title))  # type: ignore[misc]
    record.finish()


if __name__ == "__main__":
    main()
