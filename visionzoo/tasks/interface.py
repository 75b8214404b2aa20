"""What a task is to the engine that trains it: the losses it gives, the evaluation it makes, what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pytorch_lightning import Callback, LightningModule
from torch import Tensor, nn

from visionzoo.runs import RunFolder


class LossPart(NamedTuple):
    """The loss of a training batch, or of a part of one."""

    loss: Tensor  #: scalar, float32; the gradients of all parts add up to that of the batch
    logs: Mapping[str, Tensor]  #: scalars, logged as ``train/<name>``; those of all parts add up
    size: int  #: images in it
    last: bool = True  #: whether the batch has no further part
    value: Tensor | None = None  #: what it adds to the loss that is logged, where that is not ``loss``
    gradient: Tensor | None = None  #: with it ``loss`` is no scalar, and this its gradient, which counts as it is


class TaskInterface(LightningModule):
    """What a task implements, with what stands where it does not; :class:`VisionTask` trains it."""

    task_name: ClassVar[str]
    monitor: str  #: the logged value by which the best weights are chosen
    monitor_mode: str = "max"
    prediction_columns: ClassVar[tuple[str, ...]] = ()  #: of ``predictions.csv``, after the image
    score_before: bool = False  #: whether to evaluate before training, so that what is forgotten is seen
    before: Mapping[str, float] = {}  #: that evaluation, by name without stage
    opening_line: str = ""  #: what a person should know before training starts, such as what was loaded
    #: whether FSDP can be used: nothing but ``forward`` of the network and its blocks is called
    can_shard: bool = False
    settled: ClassVar[frozenset[str]] = frozenset()  #: options that a run which goes on cannot change
    built: Mapping[str, Any] = {}  #: options that rebuild this task from a checkpoint, without what it started from
    lr_factor: float = 1.0  #: on the learning rate, after going back from numbers that were not finite
    #: repeat a step that runs out of memory in parts of half the size; "auto" does so in a single process
    halve_on_oom: bool | Literal["auto"] = "auto"
    running_statistics: Sequence[Tensor] = ()  #: of BatchNorm, while training

    model: nn.Module
    run_folder: RunFolder  #: set by the engine before training starts

    def train_loss(self, batch: Any) -> LossPart:
        """Loss and logs of one training batch."""
        raise AssertionError(f"{type(self).__name__} must implement train_loss")

    def loss_parts(self, batch: Any, size: int | None) -> Iterator[LossPart]:
        """Loss and logs of one training batch, in parts of at most ``size`` images; None is the whole.

        Each part has had its backward pass when the next is asked for. Random numbers that concern the batch as a whole
        are drawn before the first.
        """
        del size
        yield self.train_loss(batch)

    def after_step(self) -> None:
        """What follows a step of the optimizer, before anything is saved: weights that are bounded, a teacher that
        moves, what is remembered of the batches of the step."""

    def can_split(self) -> bool:
        """Whether :meth:`loss_parts` can take this task's batches apart."""
        return type(self).loss_parts is not TaskInterface.loss_parts

    def images_in(self, batch: Any) -> int:
        """Images in a training batch."""
        return len(batch.images)

    def take_batch(self, batch: Any) -> Any:
        """A batch of any loader as this task takes it.

        Raises:
            ValueError: naming the type that is expected.
        """
        return batch

    def memory_advice(self) -> str:
        """What a person can do when memory runs out and the step cannot be repeated in parts."""
        return (
            "take a smaller --data.batch_size (auto measures it) with --trainer.accumulate_grad_batches, "
            "--model.grad_checkpointing true, or --trainer.precision bf16-mixed"
        )

    def update_evaluation(self, batch: Any) -> None:
        """Take one held-out batch into account; the batch may be empty."""
        raise AssertionError(f"{type(self).__name__} must implement update_evaluation")

    def finish_evaluation(self) -> dict[str, Tensor]:
        """Scalars over all held-out batches of all ranks, by name without stage; then start afresh."""
        raise AssertionError(f"{type(self).__name__} must implement finish_evaluation")

    def export_model(self) -> tuple[nn.Module, Any]:
        """The network to hand on, and its :class:`visionzoo.models.bundle.ModelConfig`. Must not change this task."""
        raise AssertionError(f"{type(self).__name__} must implement export_model")

    def prediction_rows(self, outputs: Any) -> list[tuple[str, ...]]:
        """One row of ``prediction_columns`` for each image, from what ``predict_step`` returned."""
        raise AssertionError(f"{type(self).__name__} must implement prediction_rows")

    def run_callbacks(self) -> list[Callback]:
        """Callbacks of a run of ``train.py`` that this task alone wants."""
        return []

    def begin_results(self) -> None:
        """Have the evaluation that begins keep what :meth:`draw_results` will want of it; called on every rank."""

    def draw_results(self, folder: RunFolder) -> None:
        """Draw the last evaluation into the run folder; called on rank 0 only."""

    def summary(self, metrics: Mapping[str, float]) -> str:
        """One line for the end of a run, from logged values by name without stage."""
        return ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
