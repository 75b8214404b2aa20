"""Train one model by one recipe with one seed on one share of the images, in this process."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything

from comparison.recipes import Recipe
from comparison.task import RecipeClassify
from visionzoo.data.classify import ClassifyData
from visionzoo.data.module import VisionData
from visionzoo.data.sources.split import limited
from visionzoo.runs import RunFolder
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.checkpoint import AtomicCheckpointIO, Checkpoints
from visionzoo.tasks.engine.guard import NonFinite
from visionzoo.tasks.engine.interrupt import Interrupt
from visionzoo.tasks.engine.seeding import SeedBatches

#: Seconds between saves of a run: a small share of the images makes short epochs, and a save at each would be costly.
SAVE_EVERY = 60.0
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one training is made of; plain types, since it travels to a process of its own."""

    model: str
    recipe: Recipe
    steps: int
    batch_size: int
    image_size: int
    seed: int
    fraction: float  #: of the training images
    weights: str | None = None  #: folder of a pretrained run; None starts from random weights
    path: str
    val_path: str | None
    num_workers: int
    precision: str
    channels_last: bool
    device: str


class SeldomSaves(Checkpoints):
    """Save at the end of an epoch only if the last save is a minute ago; the export at the end stays."""

    def __init__(self) -> None:
        super().__init__()
        self._saved = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if time.monotonic() - self._saved >= SAVE_EVERY:
            super().on_train_epoch_end(trainer, pl_module)
            self._saved = time.monotonic()


class Pace(Callback):
    """Seconds from one step's end to the next, reading of images included; the first steps are warm-up."""

    WARMUP = 3

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._seen = 0
        self._before = (0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"wall": self.wall, "cpu": self.cpu}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wall, self.cpu = list(state_dict["wall"]), list(state_dict["cpu"])

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        if pl_module.device.type == "cuda":  # a step is done when the device is
            torch.cuda.synchronize(pl_module.device)
        now = (time.perf_counter(), time.process_time())
        self._seen += 1
        if self._seen > self.WARMUP:
            self.wall.append(now[0] - self._before[0])
            self.cpu.append(now[1] - self._before[1])
        self._before = now

    def medians(self) -> tuple[float, float]:
        """(wall, CPU) seconds of a step. Raises ValueError if no step was timed."""
        if not self.wall:
            raise ValueError(f"more than {self.WARMUP} steps are needed to time one")
        return statistics.median(self.wall), statistics.median(self.cpu)


def open_data(
    path: str, val_path: str | None, *, seed: int, train_limit: float | None = None, **options: Any
) -> ClassifyData:
    """The product's data of classification; images without a split of their own are held out once, for all seeds.

    Trainings are compared image by image, so each must have answered the same ones.

    Args:
        path, val_path: as classify takes them.
        seed: of the order, the views and the share of the training images.
        train_limit: this share; None for all.
        options: of :class:`ClassifyData`.
    """
    data = ClassifyData(path, val_path=val_path, **options)  # whose own seed, 0, draws the hold-out
    data.seed = seed
    if data.train_source is not None:
        data.train_source = limited(data.train_source, train_limit, seed)
    return data


def build(run: Run) -> tuple[RecipeClassify, ClassifyData]:
    """The task and its data; the seed decides weights, order, views and the share of images."""
    recipe = run.recipe
    data = open_data(
        run.path,
        run.val_path,
        train_limit=run.fraction,
        batch_size=run.batch_size,
        num_workers=run.num_workers,
        seed=run.seed,
        crop=recipe.crop,
        crop_scale=recipe.crop_scale,
        hflip=recipe.hflip,
        policy=recipe.policy,
        magnitude=recipe.magnitude,
        color_jitter=recipe.color_jitter,
        erasing=recipe.erasing,
    )
    seed_everything(run.seed, verbose=False)
    task = RecipeClassify(
        backbone=run.model,
        weights=run.weights,
        image_size=run.image_size,
        num_classes=data.num_classes,
        classes=data.classes,
        optimizer=recipe.optimizer,
        loss=recipe.loss,
        lr=recipe.scaled_lr(run.batch_size),
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_steps(run.steps),
        label_smoothing=recipe.label_smoothing,
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        drop_path=recipe.drop_path,
        channels_last=run.channels_last,
    )
    return task, data


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Train, or go on with what ``folder`` holds; the final weights are exported into it.

    Nothing is chosen on held-out images: they are not looked at before the last step.

    Returns, raises:
        as :func:`fit`.
    """
    task, data = build(run)
    return fit(
        task, data, folder, steps=run.steps, seed=run.seed, clip=run.recipe.clip, precision=run.precision,
        device=run.device,
    )  # fmt: skip


def fit(
    task: VisionTask,
    data: VisionData,
    folder: Path,
    *,
    steps: int,
    seed: int,
    clip: float | None,
    precision: str,
    device: str,
) -> dict[str, Any]:
    """Run the trainer, from the last save in ``folder`` if there is one; the final weights are exported into it.

    Args:
        task, data: what is trained on what.
        folder: of the run.
        steps: optimizer steps.
        seed: of every batch.
        clip: largest norm of the gradient; None for any.
        precision: a key of :data:`PRECISIONS`.
        device: cpu or cuda.

    Returns:
        steps, images, seconds of a step, seconds of all steps (steps times the median).

    Raises:
        RunInterruptedError: after a signal; the run is saved.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    task.run_folder = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pace = Pace()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        trainer = Trainer(
            accelerator="gpu" if device.startswith("cuda") else "cpu",
            devices=1,
            precision=PRECISIONS[precision],  # type: ignore[arg-type]
            max_steps=steps,
            max_epochs=-1,
            limit_val_batches=0,
            gradient_clip_val=clip,
            callbacks=[SeedBatches(seed), NonFinite(), pace, Interrupt(), SeldomSaves()],
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        last = task.run_folder.last
        trainer.fit(task, data, ckpt_path=last if last.is_file() else None, weights_only=True)
    wall, cpu = pace.medians()
    assert data.train_source is not None
    return {
        "steps": trainer.global_step,
        "train_images": len(data.train_source),
        "seconds_per_step": wall,
        "cpu_seconds_per_step": cpu,
        "train_seconds": wall * steps,
    }
