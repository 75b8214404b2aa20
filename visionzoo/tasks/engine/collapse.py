"""Whether pretraining without labels learns something: measured every few steps, and what is done where it does not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from visionzoo.metrics.collapse import diagnose
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.checkpoint import peek
from visionzoo.tasks.engine.guard import SLOWER, go_back

OnCollapse = Literal["stop", "back", "warn"]
#: A collapse is seen so many times in a row before it is named.
SIGHTINGS = 2


class Watch(Callback):
    """Every N optimizer steps have the task measure what its features say of a few held-out images, log it as
    ``watch/<name>``, and name a collapse with its likely reason.

    Rank 0 measures; all ranks hear what it found.

    Args:
        every_n_steps: optimizer steps between two measurements; 0 measures nothing.
        on_collapse: ``stop`` ends the run with an error, ``warn`` goes on, ``back`` goes back once to the newest
            checkpoint from before, at a tenth of the learning rate, and ends the run the next time.
    """

    def __init__(self, every_n_steps: int, on_collapse: OnCollapse = "stop") -> None:
        self.every_n_steps, self.on_collapse = every_n_steps, on_collapse
        self.start: dict[str, float] = {}  #: before the first step; and the lowest entropy of the teacher so far
        self.sightings = 0  #: in a row
        self.healthy = 0  #: the last optimizer step at which nothing was seen
        self.went_back = False
        self._last_step = -1

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {
            "start": self.start,
            "sightings": self.sightings,
            "healthy": self.healthy,
            "went_back": self.went_back,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.start, self.sightings = dict(state_dict["start"]), state_dict["sightings"]
        self.healthy, self.went_back = state_dict["healthy"], state_dict["went_back"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what training starts from."""
        self._last_step = trainer.global_step
        if self.every_n_steps and not self.start and trainer.is_global_zero:
            self.start = self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where it is due."""
        step = trainer.global_step
        stepped, self._last_step = step != self._last_step, step
        if not stepped or not self.every_n_steps or step % self.every_n_steps:
            return
        found = ""
        if trainer.is_global_zero:
            signs = self._measure(trainer, pl_module)
            found = diagnose(signs, self.start, int(signs["images"]))
            if "teacher_entropy" in signs:
                lowest = self.start.get("lowest_entropy", 1.0)
                self.start["lowest_entropy"] = min(lowest, signs["teacher_entropy"])
        found = trainer.strategy.broadcast(found)
        if not found:
            self.sightings, self.healthy = 0, step
            return
        self.sightings += 1
        if self.sightings >= SIGHTINGS:
            self._act(trainer, pl_module, found)

    def _measure(self, trainer: Trainer, module: Any) -> dict[str, float]:
        training = module.training
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            signs: dict[str, float] = module.measure(trainer.datamodule)  # type: ignore[attr-defined]
        module.train(training)
        shown = {f"watch/{name}": value for name, value in signs.items() if name != "images"}
        for logger in trainer.loggers:
            logger.log_metrics(shown, step=max(trainer.global_step - 1, 0))
        return signs

    def _act(self, trainer: Trainer, module: LightningModule, found: str) -> None:
        assert isinstance(module, VisionTask)
        text = f"collapsed, seen since step {trainer.global_step - (self.sightings - 1) * self.every_n_steps}: {found}"
        if self.on_collapse == "warn":
            if self.sightings == SIGHTINGS:
                rank_zero_warn(text)
            return
        before = None if self.on_collapse == "stop" or self.went_back else self._before(trainer, module)
        if before is None:
            why = {
                "stop": "the run ends here (--model.on_collapse back or warn goes on)",
                "back": "also after going back" if self.went_back else "and there is no checkpoint from before",
            }[self.on_collapse]
            raise ValueError(f"{text}; {why}")
        step = go_back(trainer, module, before)
        self.went_back, self.sightings = True, 0
        rank_zero_warn(
            f"{text}. Weights and optimizer are back at those of {before} (step {step}), and the learning rate goes on "
            f"at {SLOWER:g} of what it was"
        )

    def _before(self, trainer: Trainer, task: VisionTask) -> Path | None:
        """The newest checkpoint of this run from a time when nothing was seen; None where there is none."""
        found = {}
        for path in (task.run_folder.last, task.run_folder.best):
            with suppress(ValueError, FileNotFoundError):  # a damaged one is none to go back to
                step = peek(path)["global_step"]
                if step <= self.healthy:
                    found[step] = path
        newest: Path | None = trainer.strategy.broadcast(found[max(found)] if found else None)
        return newest
