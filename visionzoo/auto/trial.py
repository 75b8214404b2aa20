"""Train one recipe in a run folder of its own, within the time that there is for it."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything

from visionzoo.auto.recipes import PASSES, Method, Recipe
from visionzoo.data.classify import ClassifyData
from visionzoo.runs import RunFolder
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.engine.assemble import guards, run_files
from visionzoo.tasks.engine.checkpoint import AtomicCheckpointIO, Checkpoints
from visionzoo.tasks.engine.loggers import MetricsFile
from visionzoo.tasks.engine.progress import ProgressBar
from visionzoo.tasks.engine.quiet import quiet_lightning
from visionzoo.tasks.lightning_private import leave_signals_alone

_HEADER = "# Trained by visionzoo fit; runs again with: train.py classify fit --config FILE\n"
#: Share of the planned steps after which a run is measured.
_MEASURED = 0.05
#: A run that would need more than this of its time is begun again, with fewer epochs.
_TOO_SLOW = 1.15
#: Share of the planned steps after which a run that lies far behind is given up.
_JUDGED = 0.5


class TooSlowError(Exception):
    """The run would not end in time."""

    def __init__(self, seconds_per_step: float) -> None:
        super().__init__(f"{seconds_per_step:.3g} s a step")
        self.seconds_per_step = seconds_per_step

    def images_per_second(self, method: Method, batch_size: int) -> float:
        """The speed of a forward pass at which such a step would take so long."""
        return PASSES[method] * batch_size / self.seconds_per_step


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    accuracy: float  #: share of the held-out training images, by the best of its epochs, in [0, 1]
    epochs: float  #: that were trained
    note: str = ""  #: why it ended early, if it did


class Clock(Callback):
    """End a run when its time is over, when it cannot win, or, at its start, when it would not be done in time.

    Args:
        deadline: when it must end, by :func:`time.monotonic`.
        to_beat: the accuracy of the best so far on the same held-out images.
        images: how many these are.
        patient: whether a run that will not be done in time goes on until its time is over.
    """

    def __init__(self, deadline: float, to_beat: float, images: int, *, patient: bool = False) -> None:
        self.deadline, self.to_beat, self.images = deadline, to_beat, images
        self.note = ""
        self._begun: tuple[float, int] | None = None
        self._measured = patient

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock."""
        now, step = time.monotonic(), trainer.global_step
        total = float(trainer.estimated_stepping_batches)
        if self._begun is None:  # the first step has the workers started
            self._begun = now, step
        elif not self._measured and step - self._begun[1] >= max(3, _MEASURED * total):
            self._measured = True
            seconds = (now - self._begun[0]) / (step - self._begun[1])
            if seconds * (total - step) > _TOO_SLOW * (self.deadline - now):
                raise TooSlowError(seconds)
        if now > self.deadline and not trainer.should_stop:
            self.note = "its time was over"
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give up a run that lies behind by more than chance and what is left of the schedule could mend."""
        assert isinstance(pl_module, VisionTask)
        done = trainer.global_step / float(trainer.estimated_stepping_batches)
        score = trainer.callback_metrics.get(pl_module.monitor)
        if score is None or done < _JUDGED or done >= 1:
            return
        error = 1 - self.to_beat
        margin = 2 * math.sqrt(max(self.to_beat * error, 1 / self.images) / self.images)
        if float(score) < self.to_beat - max(margin, error / 2) and not trainer.should_stop:
            self.note = f"given up at {done:.0%}: {100 * float(score):.1f} % lies too far behind"
            trainer.should_stop = True


def train_recipe(
    made: Recipe,
    folder: RunFolder,
    data_options: dict[str, Any],
    network: dict[str, Any],
    *,
    deadline: float,
    to_beat: float,
    patient: bool = False,
    seed: int,
    device: torch.device,
    resume_command: str,
) -> Outcome:
    """Train, or go on with what is in the folder.

    Args:
        made: how.
        folder: a run folder of its own.
        data_options: of :class:`ClassifyData`, beside those of the recipe: which images are trained on, and by
            ``dev_fraction`` which of them are held out; 0 holds out none.
        network: of :class:`ClassifyTask`: backbone, weights and the like.
        deadline: when it must end, by :func:`time.monotonic`.
        to_beat, patient: see :class:`Clock`.
        seed: of everything that is random.
        device: where.
        resume_command: what a person types after a Ctrl-C.

    Raises:
        RunInterruptedError: after a Ctrl-C or a scheduler's signal; what was trained is saved.
        TooSlowError: where it would not be done in time.
    """
    quiet_lightning()
    seed_everything(seed, verbose=False)
    options = {**data_options, **made.data, "seed": seed}
    data = ClassifyData(**options)
    task = ClassifyTask(
        num_classes=data.num_classes,
        classes=data.classes,
        class_counts=data.class_counts.tolist(),
        **network,
        **made.model,
    )
    held = len(data.val_source) if data.val_source is not None and options["dev_fraction"] else 0
    clock = Clock(deadline, to_beat, held, patient=patient)
    own: list[Callback] = [clock]
    bar = sys.stdout.isatty()
    if bar:
        own.append(ProgressBar())
    folder.path.mkdir(parents=True, exist_ok=True)
    config = {"seed_everything": seed, "model": {**network, **made.model}, "data": options, "trainer": made.trainer}
    trainer = Trainer(
        **made.trainer,
        accelerator={"cuda": "gpu", "cpu": "cpu", "mps": "mps"}[device.type],
        devices=[device.index or 0] if device.type == "cuda" else 1,
        logger=MetricsFile(folder.metrics_csv),
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            *run_files(
                data,
                folder,
                data_options=options,
                config=f"{_HEADER}{yaml.safe_dump(config)}",
                seed=seed,
                resume_command=resume_command,
            ),
            *guards(task, own, max_nonfinite_steps=10, save_every_n_steps=0, resume_command=resume_command),
        ],
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if held else 0,  # the data's own held-out images are not looked at here
        log_every_n_steps=10,
        use_distributed_sampler=False,
    )
    leave_signals_alone(trainer)
    trainer.fit(task, datamodule=data, ckpt_path=str(folder.last) if folder.last.is_file() else None)
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
    batches = max(1, trainer.num_training_batches)
    return Outcome(float(checkpoints.best or 0.0), trainer.global_step / batches, clock.note)
