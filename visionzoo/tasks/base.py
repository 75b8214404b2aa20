"""What every task shares: optimizer, schedule, normalisation on the device, logging and checkpoint contents."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Self

from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.utilities.enums import GradClipAlgorithmType
from pytorch_lightning.utilities.parsing import AttributeDict
from torch import Tensor, nn
from torch.optim import Optimizer

from visionzoo.models.bundle import load_bundle
from visionzoo.models.preprocess import Normalize, as_grey
from visionzoo.runs import RunFolder
from visionzoo.tasks import optim
from visionzoo.tasks.interface import TaskInterface
from visionzoo.tasks.lightning_private import forget_logged, is_logged_step, show_callbacks, use_our_norms
from visionzoo.tasks.options import plain, settled_changes
from visionzoo.tasks.out_of_memory import advise, statistics_of
from visionzoo.tasks.step import Step, TrainingStep
from visionzoo.types import Preprocess
from visionzoo.weights import SCHEMA_VERSION, LoadReport


class VisionTask(TaskInterface):
    """A task: it computes a loss and an evaluation; this class optimizes, schedules, logs and stores.

    A subclass builds its network, calls :meth:`use_model`, and implements :meth:`train_loss` (or :meth:`loss_parts`,
    where a batch can be taken apart), :meth:`update_evaluation`, :meth:`finish_evaluation` and :meth:`export_model`.

    Args:
        lr: peak learning rate of the layer nearest the output.
        base_lr: peak learning rate for 256 images per optimizer step, scaled linearly to the real number of them (all
            ranks and accumulated batches); takes the place of lr when given.
        optimizer: adamw, or the name of another one of timm's, such as lamb, lion, muon, sgd or adafactorbv.
        weight_decay: of the optimizer; norms, biases, tokens and position tables are never decayed.
        layer_decay: factor on the learning rate for each layer further from the output, in (0, 1]; 0.65 to 0.75 is
            usual for fine-tuning large ViTs.
        betas: AdamW's two momenta; another optimizer has its own.
        warmup_epochs: length of the linear warm-up in epochs, fractions included.
        warmup_steps: length of the warm-up in optimizer steps; takes the place of warmup_epochs when above 0.
        min_lr: learning rate at the end of the cosine.
        ema_decay: decay of the moving average of the weights that is evaluated and exported; 0 turns it off.
        compile: run the network through torch.compile.
        grad_checkpointing: recompute activations in the backward pass, to save memory.
    """

    load_report: LoadReport | None = None  #: what came of ``weights``
    _group_options: list[dict[str, Any]] | None = None  #: what :meth:`configure_optimizers` gave each group
    step: Step | None = None  #: what the last training batch came to
    logged_step: Step | None = None  #: the last one whose values were logged

    def __init__(
        self,
        *,
        lr: float = 5e-4,
        base_lr: float | None = None,
        optimizer: str = "adamw",
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_epochs: float = 0.0,
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        ema_decay: float = 0.0,
        compile: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # all options, those of subclasses included
        # what loggers write, and checkpoints hold, must be readable without running code
        self._hparams = AttributeDict(plain(self.hparams))
        self._hparams_initial = AttributeDict(plain(self.hparams))
        for name, value in (("weight_decay", weight_decay), ("warmup_epochs", warmup_epochs), ("min_lr", min_lr)):
            if value < 0:
                raise ValueError(f"{name}={value} must be at least 0")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay} must be in [0, 1); 0 turns the average off")
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay={layer_decay} must be in (0, 1]; 1 gives every layer the same learning rate")
        if min(lr, base_lr if base_lr is not None else lr) <= 0:
            raise ValueError(f"lr={lr} and base_lr={base_lr} must be above 0")
        self.lr, self.base_lr, self.betas = lr, base_lr, betas
        self.optimizer_name = optim.check_optimizer(optimizer)
        self.weight_decay, self.layer_decay = weight_decay, layer_decay
        self.warmup_epochs, self.warmup_steps, self.min_lr = warmup_epochs, warmup_steps, min_lr
        self.ema_decay, self.compile_model, self.grad_checkpointing = ema_decay, compile, grad_checkpointing
        self.take_step = TrainingStep()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """The task of a checkpoint, which holds its options; Lightning's arguments, but no object is unpickled.

        Where options alone cannot say the network (a CLIP of another vocabulary), the weights it started
        from are read again. With averaged weights (``ema_decay``) it holds the average.
        """
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only=weights_only, **kwargs
        )

    # ---- the network ------------------------------------------------------------------------------------------------

    def use_model(self, model: nn.Module, in_chans: int | None = None) -> None:
        """Make ``model`` the network of this task."""
        if self.grad_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.model = model
        self.in_chans = in_chans
        self.normalize = Normalize(self.preprocess, in_chans)
        if self.compile_model:
            self.model.compile()  # in place, so that the keys stay what they are

    @property
    def preprocess(self) -> Preprocess:
        """How the data must prepare images: as the network says, in grey where they have one channel."""
        spec: Preprocess = self.model.preprocess  # type: ignore[assignment]
        return as_grey(spec) if self.in_chans == 1 and len(spec.mean) > 1 else spec

    def use_exported(self, folder: RunFolder) -> None:
        """Take the exported model of a run in place of the trained one, to evaluate what others will load."""
        self.use_model(load_bundle(folder.path)[0], self.in_chans)
        self.load_report = None  # whatever the run started from

    def configure_model(self) -> None:
        """Shard the network where the strategy asks for it; have ``sync_batchnorm`` keep activations. Raises ValueError
        for a task that cannot be sharded."""
        if self._trainer is not None:
            use_our_norms(self._trainer)
        strategy: Any = None if self._trainer is None else self._trainer.strategy
        if not hasattr(strategy, "shard"):
            return
        if not self.can_shard or self.ema_decay:
            what = "ema_decay" if self.can_shard else f"this kind of {self.task_name}"
            raise ValueError(
                f"--trainer.strategy fsdp does not go with {what}; use ddp, or fsdp for classify without it"
            )
        strategy.shard(self.model)

    # ---- Lightning's hooks ------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """The moving average that ``ema_decay`` asks for, where a plain Trainer has none.

        Raises:
            ValueError: for a task that lacks something; this is the first that a Trainer asks.
        """
        from visionzoo.tasks.contract import check_task
        from visionzoo.tasks.engine.ema import EMA

        check_task(self)
        have = any(isinstance(c, EMA) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [EMA(self.ema_decay)] if self.ema_decay and not have else []

    def on_train_start(self) -> None:
        """Apply the options of optimizer and mode, which a checkpoint may have changed."""
        self.apply_optimizer_options()
        self.train()  # Lightning leaves every module in the mode it finds, also what must be in eval mode
        self.running_statistics = statistics_of(self)
        # on a small set an epoch has fewer steps than the logging interval, and would show no loss at all
        trainer: Any = self.trainer
        if trainer.log_every_n_steps and (steps := self._steps_per_epoch()) is not None:
            trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, int(steps)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """A batch -> the scalar loss that Lightning goes on with, see :class:`TrainingStep`."""
        before = self.step
        self.step = step = self.take_step(self, self.take_batch(batch), batch_idx)
        # Loggers read, or whoever asks for the last values of an epoch. Each value that is logged costs more than the
        # step of a small model, and on a bar it has the device waited for.
        if is_logged_step(self.trainer) or batch_idx + 1 >= self.trainer.num_training_batches:
            self.logged_step = step
            self._log_step(step)
        else:
            if before is not None and before is self.logged_step:
                forget_logged(self.trainer, {"micro_batch", "lr", *before.named()})
            show_callbacks(self.trainer, step.named())
        return step.loss

    def _log_step(self, step: Step) -> None:
        if self.take_step.size is not None:
            self.log("micro_batch", float(self.take_step.size), batch_size=step.size)
        self.log_dict(step.named(), prog_bar=True, batch_size=step.size)
        if self.trainer.optimizers:
            self.log("lr", max(g["lr"] for g in self.trainer.optimizers[0].param_groups), batch_size=step.size)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # a step that may be repeated has had its backward pass; what is left is to exchange gradients, or nothing
        if loss.requires_grad:
            with advise(self):
                loss.backward(*args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        plugin = self.trainer.precision_plugin
        if self.trainer.precision != "bf16-mixed" or not isinstance(plugin, MixedPrecision):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # Lightning's own refuses to clip for a fused optimizer, which unscales; but in bfloat16 nothing is scaled
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step of the optimizer, and what the task has follow it; Lightning's later hooks come after the save."""
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing where :class:`TrainingStep` has begun to fill them; a task may have a training_step of its own."""
        if not self.take_step.filled:
            optimizer.zero_grad()
        self.take_step.filled = False

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Take a held-out batch into account."""
        del batch_idx
        self.update_evaluation(self.take_batch(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Take a test batch into account."""
        del batch_idx
        self.update_evaluation(self.take_batch(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the scores as ``val/<name>``."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores as ``test/<name>``."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        for name, value in self.finish_evaluation().items():
            # finish_evaluation has gathered all ranks already
            self.log(f"{stage}/{name}", value, prog_bar=name != "loss", batch_size=1, rank_zero_only=False)

    def configure_optimizers(self) -> Any:
        """The named optimizer and a warm-up into a cosine. A subclass may override :meth:`make_optimizer`."""
        lr = self.peak_lr(self.trainer)
        groups = self.param_groups(lr)
        self._group_options = [{k: g[k] for k in ("lr", "lr_scale", "weight_decay", "name")} for g in groups]
        optimizer = self.make_optimizer(groups, lr)
        total = self._total_steps()
        factor = partial(
            optim.warmup_cosine,
            warmup_steps=self._warmup(total),
            total_steps=total,
            floor=min(1.0, self.min_lr / lr),
        )
        scheduler = optim.Schedule(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def make_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """The optimizer over :meth:`param_groups`."""
        fused = self._fused_allowed()
        return optim.make_optimizer(self.optimizer_name, groups, lr=lr, betas=self.betas, fused=fused)

    def apply_optimizer_options(self) -> None:
        """Learning rates, decay and momenta as the options say: a checkpoint brings those that it was saved with.

        A task with a :meth:`configure_optimizers` of its own keeps what the checkpoint says, and so do groups that a
        callback has added.
        """
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if self._group_options is None or not isinstance(schedule, optim.Schedule):  # other people's
                continue
            schedule.base_lrs = [options["lr"] * self.lr_factor for options in self._group_options]
            now = [
                lr * factor(schedule.last_epoch)
                for lr, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            ]
            groups = schedule.optimizer.param_groups[: len(now)]
            for group, options, peak, lr in zip(groups, self._group_options, schedule.base_lrs, now, strict=True):
                group.update(options, initial_lr=peak, lr=lr)
                if self.optimizer_name == "adamw" and "betas" in group:
                    group["betas"] = self.betas
            schedule._last_lr = now

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The optimizer's groups for a peak learning rate, see :func:`visionzoo.tasks.optim.param_groups`."""
        return optim.param_groups(self.model, lr=lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)

    def peak_lr(self, trainer: Trainer, datamodule: LightningDataModule | None = None) -> float:
        """``lr``, or ``base_lr * images per optimizer step / 256`` (linear scaling, arXiv 1706.02677)."""
        if self.base_lr is None:
            return self.lr
        batch_size = getattr(datamodule or trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        if not isinstance(batch_size, int):  # loaders of one's own
            trainer.fit_loop.setup_data()
            batch_size = getattr(trainer.train_dataloader, "batch_size", None)
        if not isinstance(batch_size, int):
            raise ValueError(
                f"base_lr={self.base_lr} is for 256 images, and neither datamodule nor loader has a batch_size; give lr"
            )
        return self.base_lr * batch_size * trainer.world_size * trainer.accumulate_grad_batches / 256

    def _total_steps(self) -> int:
        self.trainer.fit_loop.setup_data()  # or the length of an epoch is not known where max_steps alone is given
        total = self.trainer.estimated_stepping_batches
        if not 0 <= total < float("inf"):
            if self._steps_per_epoch() is None:
                raise ValueError(
                    "the cosine schedule needs an end, and the training data do not know their length: give "
                    "--trainer.max_steps"
                )
            raise ValueError("the cosine schedule needs an end: give --trainer.max_epochs or --trainer.max_steps")
        return int(total)

    def _steps_per_epoch(self) -> float | None:
        """Optimizer steps, fractions included; None where the data do not know their length."""
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        return batches if batches < float("inf") else None

    def _warmup(self, total: int) -> int:
        if self.warmup_steps > 0:
            steps = self.warmup_steps
        elif self.warmup_epochs > 0:
            batches = self._steps_per_epoch()
            if batches is None:
                raise ValueError(
                    f"warmup_epochs={self.warmup_epochs} needs data that know their length; give warmup_steps instead"
                )
            steps = round(self.warmup_epochs * batches)
        else:
            return 0
        if steps >= total:
            raise ValueError(f"a warm-up of {steps} steps leaves nothing of the {total} steps of training; shorten it")
        return steps

    def _fused_allowed(self) -> bool:
        # in 16 bits clipping and a fused optimizer would both unscale
        return self.trainer.precision != "16-mixed"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plain values beside the weights: task, options, preprocessing, and what rebuilds the task."""
        checkpoint["schema_version"] = SCHEMA_VERSION
        checkpoint["task"] = self.task_name
        checkpoint["micro_batch"] = self.take_step.size
        checkpoint["lr_factor"] = self.lr_factor
        checkpoint["preprocess"] = self.preprocess.to_dict()
        checkpoint["options"] = dict(self.hparams)
        # what Lightning's load_from_checkpoint builds this task with
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {**checkpoint["options"], **plain(self.built)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this task and can go on. Raises ValueError."""
        version, task = checkpoint.get("schema_version"), checkpoint.get("task")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ValueError(f"the checkpoint has schema {version}; this visionzoo reads up to {SCHEMA_VERSION}")
        if task != self.task_name:
            raise ValueError(f"the checkpoint belongs to the task {task!r}, not to {self.task_name!r}")
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._check_options(checkpoint)
        self.take_step.size = checkpoint.get("micro_batch")
        self.lr_factor = checkpoint.get("lr_factor", 1.0)
        if "preprocess" in checkpoint:
            self._use_preprocess(Preprocess.from_dict(checkpoint["preprocess"]))

    def _check_options(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse to go on with options that cannot change in a run; the others are applied.

        Raises:
            ValueError: naming them.
        """
        built = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        changes = settled_changes(checkpoint.get("options", {}), built, self.hparams, self.settled)
        if changes:
            raise ValueError(
                f"a run that goes on keeps its network and what it learns, but model.{', model.'.join(changes)}. "
                "Resume without that, or start a new run with --model.weights and the folder of this one"
            )

    def _use_preprocess(self, preprocess: Preprocess) -> None:
        """Prepare images as the weights of a checkpoint want them."""
        if preprocess == self.preprocess:
            return
        self.model.preprocess = preprocess  # type: ignore[assignment]
        self.normalize = Normalize(preprocess, self.in_chans).to(self.device)
        data: Any = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        if data is not None:  # which has asked already
            data.preprocess = preprocess

    def train(self, mode: bool = True) -> VisionTask:
        """As in torch, but whatever a task keeps frozen stays in eval mode (see :meth:`frozen_modules`)."""
        super().train(mode)
        if mode:
            for module in self.frozen_modules():
                module.training = False  # not eval(), which would reach trainable children
        return self

    def frozen_modules(self) -> list[nn.Module]:
        """Every module, children included, that never trains: no dropout, no running statistics."""
        return []


def summarize_parameters(module: nn.Module) -> str:
    """``"5.5 M parameters, 2.1 k of them trained"``."""
    everything, trained = optim.total_parameters(module)
    return f"{_short(everything)} parameters, " + (
        "all of them trained" if everything == trained else f"{_short(trained)} of them trained"
    )


def _short(count: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
