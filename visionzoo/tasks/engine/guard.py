"""Numbers that go wrong: a step whose loss or gradient is not finite is left out, and evidence is kept."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from visionzoo.files import write_csv
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.disk import disk_may_fail
from visionzoo.tasks.engine.flags import Flags, Reading
from visionzoo.tasks.engine.fsdp import FullySharded, local
from visionzoo.tasks.optim import skip_on

COLUMNS = ("step", "epoch", "what", "rank", "sample")
#: Factor on the learning rate after going back.
SLOWER = 0.1


class NonFinite(Callback):
    """Leave out optimizer steps whose loss or gradient is not finite, the same ones on every rank.

    Such a step changes no parameter and no state of the optimizer; the schedule goes on. The samples of its batches
    are written to ``nonfinite.csv``. ``limit`` such steps in a row put weights and optimizer back to the last
    checkpoint and lower the learning rate to a tenth, once; the next time, or without a checkpoint, the run stops.
    With ``precision=16-mixed`` the gradient scaler does all this, and the guard is off.

    Args:
        limit: steps in a row.
        flags: what the ranks tell each other; None for its own.
    """

    def __init__(self, limit: int = 10, flags: Flags | None = None) -> None:
        if limit < 1:
            raise ValueError(f"max_nonfinite_steps={limit} must be at least 1")
        self.limit, self.flags = limit, flags or Flags()
        self.skipped = 0  #: in the whole run
        self.in_a_row = 0
        self.went_back = False
        self._rows: list[tuple[str, ...]] = []
        self._samples: list[Tensor] = []  #: places in the data, (B,) for each batch of an optimizer step
        self._losses: list[Tensor] = []
        self._steps: deque[_Step] = deque()  #: whose flags have not been read

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out, and their samples."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "went_back": self.went_back, "rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self.went_back = state_dict["went_back"]
        self._rows = [tuple(row) for row in state_dict["rows"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget samples of a step that was broken off."""
        self._samples, self._losses = [], []
        self._steps.clear()
        self.flags.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which samples the step is made of."""
        index = getattr(batch, "index", None)
        if isinstance(index, Tensor):
            self._samples.append(index)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        samples, losses = self._samples, self._losses
        self._samples, self._losses = [], []
        if trainer.precision == "16-mixed":
            bad = torch.zeros(2, device=pl_module.device)
        else:
            bad = _not_finite(losses, optimizer, pl_module.device)
        self._steps.append(_Step(trainer.global_step, trainer.current_epoch, samples))
        skip = self.flags.exchange(trainer, bad)
        can_skip = skip_on(optimizer, skip)
        for reading in self.flags.read(wait=not can_skip):
            self._note(trainer, pl_module, optimizer, reading)
            if reading.skipped and not can_skip:  # this step, which has been waited for
                _forget_gradients(optimizer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for reading in self.flags.read(wait=True):
            self._note(trainer, pl_module, trainer.optimizers[0], reading)

    def _note(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer, reading: Reading) -> None:
        """Take in what came of the oldest step that has not been read."""
        assert isinstance(module, VisionTask)
        step = self._steps.popleft()
        if not reading.skipped:
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        what = "loss" if reading.loss else "gradient" if reading.gradient else ""
        facts = (str(step.number), str(step.epoch), what or "another rank", str(trainer.global_rank))
        places = [i for index in step.samples for i in index.tolist()]
        self._rows += _gathered(trainer, [(*facts, _name(trainer, i)) for i in places])
        path = module.run_folder.nonfinite
        if trainer.is_global_zero:
            with disk_may_fail(path, "training goes on"):
                write_csv(path, list(COLUMNS), self._rows)
        if self.skipped == 1:
            rank_zero_warn(
                f"step {step.number} was left out: {what or 'a value on another rank'} is not finite; see {path}"
            )
        if self.in_a_row >= self.limit:
            self._go_back(trainer, module, optimizer)

    def _go_back(self, trainer: Trainer, task: VisionTask, optimizer: Optimizer) -> None:
        last = task.run_folder.last
        evidence = f"{self.in_a_row} steps in a row had a loss or gradient that is not finite"
        if self.went_back or not last.is_file():
            why = "also after going back to the last checkpoint" if self.went_back else "and there is no checkpoint yet"
            raise ValueError(
                f"{evidence}, {why}; {task.run_folder.nonfinite} lists their samples. Lower the learning rate, clip "
                "gradients (--trainer.gradient_clip_val 1.0), use bf16 or 32-bit precision, or look at these samples"
            )
        step = go_back(trainer, task, last)
        self.went_back, self.in_a_row = True, 0
        rank_zero_warn(
            f"{evidence}: weights and optimizer are back at those of {last} (step {step}), "
            f"and the learning rate goes on at {SLOWER:g} of what it was"
        )


def go_back(trainer: Trainer, task: VisionTask, path: Path) -> int:
    """Put weights and optimizer back to those of a checkpoint, lower the learning rate by :data:`SLOWER`, and give the
    checkpoint's optimizer step; call it on every rank. The order of the data goes on."""
    checkpoint = trainer.strategy.load_checkpoint(path)
    if isinstance(trainer.strategy, FullySharded):  # which has loaded the weights by this
        trainer.strategy.load_optimizer_state_dict(checkpoint)
    else:
        # where weights are averaged, state_dict is the average
        task.load_state_dict({**checkpoint["state_dict"], **checkpoint.get("ema_trained", {})})
        for own, stored in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            own.load_state_dict(stored)
    task.lr_factor *= SLOWER
    task.apply_optimizer_options()
    step: int = checkpoint["global_step"]
    return step


class _Step(NamedTuple):
    number: int
    epoch: int
    samples: list[Tensor]


def _not_finite(losses: list[Tensor], optimizer: Optimizer, device: torch.device) -> Tensor:
    """(2,) float32 on the device, 1 where the losses and the gradient of this rank are not finite."""
    gradients = [local(p.grad) for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    gradients = [g for g in gradients if g.numel()]  # of small ones a process may have no part
    # A norm beyond the range of the type counts as infinite: AdamW's second moment, the square, would be for good. In
    # float16 it would be too soon.
    kind = math.inf if any(g.dtype == torch.float16 for g in gradients) else 2.0
    norm = torch.nn.utils.get_total_norm(gradients, kind)
    values = torch.stack([torch.stack(losses).sum().to(norm) if losses else torch.zeros_like(norm), norm])
    return (~torch.isfinite(values)).to(device, torch.float32)


def _forget_gradients(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None  # a gradient of zero would still decay weights and move by momentum


def _name(trainer: Trainer, index: int) -> str:
    source = getattr(trainer.datamodule, "train_source", None)  # type: ignore[attr-defined]
    return str(index) if source is None else source.sample_id(index)


def _gathered(trainer: Trainer, rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows of all ranks."""
    if trainer.world_size == 1:
        return rows
    parts: list[list[tuple[str, ...]]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
