"""The progress bar: images per second, loss, scores, bad images, time left of the whole run."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn

from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.bad_samples import BadSamples
from visionzoo.tasks.engine.guard import NonFinite
from visionzoo.terminal import say


class Throughput:
    """Images per second over the last batches, pauses such as validation left out."""

    def __init__(self, memory: float = 0.9) -> None:
        self.memory = memory
        self.seconds = self.images = 0.0
        self._started: float | None = None

    def start(self, now: float) -> None:
        """Begin to count, at ``now`` in seconds."""
        self._started = now

    def stop(self, now: float, images: int) -> None:
        """Count a batch that ends at ``now``."""
        if self._started is None:
            return
        self.seconds = self.memory * self.seconds + now - self._started
        self.images = self.memory * self.images + images
        self._started = now  # the next batch begins where this one ends, waiting for data included

    @property
    def rate(self) -> float:
        """Images per second, recent ones weighing more; 0 before the first batch."""
        return self.images / self.seconds if self.seconds else 0.0


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with what a person wants to know while waiting.

    Values are those of the last step that was logged: reading others would wait for the device.
    """

    def __init__(self, refresh_rate: int = 4) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._speed = Throughput()
        self._values: dict[str, Any] = {}
        self._read_from: Any = None
        self._begun: tuple[float, int] = (0.0, 0)

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Description, bar and count: what fits into 80 columns."""
        return [TextColumn("{task.description}"), BarColumn(bar_width=10), MofNCompleteColumn()]

    def _get_train_description(self, current_epoch: int) -> str:  # Lightning counts from 0, the epoch lines from 1
        last = f"/{self.trainer.max_epochs}" if self.trainer.max_epochs and self.trainer.max_epochs > 0 else ""
        return f"epoch {current_epoch + 1}{last}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember when this session began, for the time that is left."""
        super().on_train_start(trainer, pl_module)
        self._begun = time.monotonic(), trainer.fit_loop.total_batch_idx + 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count images."""
        super().on_train_epoch_start(trainer, pl_module)
        self._speed.start(time.monotonic())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's images, those of all ranks."""
        images = getattr(batch, "images", None)
        self._speed.stop(time.monotonic(), 0 if images is None else len(images) * trainer.world_size)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new scores at once, and leave the evaluation out of the speed."""
        super().on_validation_end(trainer, pl_module)
        self._speed.start(time.monotonic())

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar; read from the device four times a second at most."""
        assert isinstance(pl_module, VisionTask)
        logged = pl_module.logged_step
        if logged is not None and logged is not self._read_from:
            # held-out scores are on the line that each epoch leaves; here they would not fit into 80 columns
            values = {"loss": logged.value, **logged.logs}
            self._read_from, self._values = logged, {name: f"{float(v):.3f}" for name, v in values.items()}
        shown = dict(self._values)
        shown["img/s"] = f"{self._speed.rate:,.0f}"
        bad = next((len(c.seen) for c in trainer.callbacks if isinstance(c, BadSamples)), 0)  # type: ignore[attr-defined]
        if bad:
            shown["bad"] = str(bad)
        if skipped := _skipped(trainer):
            shown["skipped"] = str(skipped)
        if (left := seconds_left(trainer, self._begun, time.monotonic())) is not None:
            shown["left"] = str(timedelta(seconds=round(left)))
        return shown


def seconds_left(trainer: Trainer, begun: tuple[float, int], now: float) -> float | None:
    """From the mean time of a batch since ``begun``, a time and its batch, validations included."""
    started, first = begun
    done = trainer.fit_loop.total_batch_idx + 1
    total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    if done <= first or total == float("inf"):
        return None
    return max(0.0, (total - done) * (now - started) / (done - first))


class EpochLines(Callback):
    """One line per epoch, which stays: also for logs, where a bar is no help. Training values are its means.

    Args:
        every_seconds: where there is no bar, a line with step, loss, speed and time left this often inside an epoch.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        self.every_seconds = every_seconds
        self._run_begun: tuple[float, int] = (0.0, 0)
        self._last_line = 0.0
        self._begin()

    def _begin(self) -> None:
        self._started, self._images = time.monotonic(), 0
        self._sums: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, also in the middle of an epoch that is resumed."""
        self._begin()  # Lightning does not announce an epoch that is resumed in its middle
        self._last_line = time.monotonic()
        self._run_begun = self._last_line, trainer.fit_loop.total_batch_idx + 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to sum up an epoch."""
        self._begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch to the epoch's sums."""
        images = len(getattr(batch, "images", ()))
        self._images += images * trainer.world_size
        assert isinstance(pl_module, VisionTask)
        if (step := pl_module.step) is not None:
            for name, value in {"loss": step.value, **step.logs}.items():
                # stays on the device: reading it would wait for every step
                self._sums[name] = self._sums.get(name, 0.0) + value * images
        now = time.monotonic()
        if now - self._last_line >= self.every_seconds and trainer.is_global_zero:
            self._last_line = now
            if trainer.progress_bar_callback is None:
                self._say_where(trainer, now)

    def _say_where(self, trainer: Trainer, now: float) -> None:
        total = trainer.estimated_stepping_batches
        parts = [f"step {trainer.global_step}" + (f" of {int(total)}" if 0 < total < float("inf") else "")]
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            parts.append(f"loss {float(loss):.4g}")
        parts.append(f"{self._images / (now - self._started):,.0f} images/s")
        if (left := seconds_left(trainer, self._run_begun, now)) is not None:
            parts.append(f"{timedelta(seconds=round(left))} left")
        say("  ".join(parts), flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line."""
        if not trainer.is_global_zero:
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k != "lr"}
        own = self._images / trainer.world_size
        values.update({f"train/{k}": float(v) / own for k, v in self._sums.items() if own})
        text = "  ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
        last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        seconds = time.monotonic() - self._started  # validation included: it is what an epoch costs
        bad = next((len(c.seen) for c in trainer.callbacks if isinstance(c, BadSamples)), 0)  # type: ignore[attr-defined]
        tail = f"  unreadable images {bad}" if bad else ""
        tail += f"  steps left out {n}" if (n := _skipped(trainer)) else ""
        say(
            f"epoch {trainer.current_epoch + 1}{last}  {text}  {self._images / seconds:,.0f} images/s{tail}", flush=True
        )


def _skipped(trainer: Trainer) -> int:
    """Steps that were left out since a number was not finite."""
    return next((c.skipped for c in trainer.callbacks if isinstance(c, NonFinite)), 0)  # type: ignore[attr-defined]
