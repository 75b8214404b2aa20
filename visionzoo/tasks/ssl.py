"""Pretrain a backbone on several views of each image, without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from visionzoo.losses.gather import gather_features
from visionzoo.losses.self_supervised import check_temperature
from visionzoo.metrics.representation import alignment, spread
from visionzoo.models.bundle import ModelConfig
from visionzoo.models.ssl import Dino, ViewModel, create_ssl, start_from
from visionzoo.models.ssl.create import USUAL, SslMethod
from visionzoo.registry import require_capability
from visionzoo.runs import RunFolder
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.batches import view_batch
from visionzoo.tasks.engine.collapse import OnCollapse, Watch
from visionzoo.tasks.engine.sheets import Sheets
from visionzoo.tasks.handover import describe_handover, run_config, trunk_options
from visionzoo.tasks.interface import LossPart
from visionzoo.tasks.ssl_evaluation import FeatureSample, feature_scores
from visionzoo.tasks.ssl_pictures import AMONG, VIEWS, head_attention, nearest_places, view_sheet
from visionzoo.types import ImageBatch, ViewBatch
from visionzoo.weights import load_weights

#: Of training, where the user says nothing: MoCo v3's for ViTs (arXiv 2104.02057, its reference code), DINO's for a
#: ViT-S (2104.14294, its reference code). SimCLR's own recipe is LARS; with AdamW it takes MoCo v3's.
RECIPES: dict[str, dict[str, float]] = {
    "simclr": {"base_lr": 1.5e-4, "weight_decay": 0.1, "momentum": 0.0},
    "moco": {"base_lr": 1.5e-4, "weight_decay": 0.1, "momentum": 0.99},
    "dino": {"base_lr": 5e-4, "weight_decay": 0.04, "weight_decay_end": 0.4, "momentum": 0.996},
}


class SslTask(VisionTask):
    """Pretraining on views: SimCLR (arXiv 2002.05709), MoCo v3 (2104.02057) or DINO (2104.14294).

    The defaults are the papers' for ViTs: AdamW, learning rate scaled by the effective batch, linear warm-up, cosine.

    Args:
        backbone: a name from ``visionzoo models``; not needed when weights is a run folder.
        method: simclr, moco or dino; none for the run's in weights, else dino.
        weights: start from these: a run of this task and method (heads too), or of any other, or released weights (the
            backbone alone); none starts from scratch.
        image_size: height and width of the large views in pixels, one number or two; none for the backbone's own.
        in_chans: channels of the images.
        in_chans_policy: how stored weights become in_chans channels, see visionzoo.load_weights.
        hidden: width of the heads' hidden layers; none for the run's in weights, else the paper's (simclr: that of the
            features).
        out: width of what is compared (simclr 128, moco 256), or number of prototypes (dino 65536); none for the run's,
            else these.
        temperature: of the loss, the student's in dino; none for the run's, else 0.5 (simclr), 0.2 (moco), 0.1 (dino).
        queue: keys of earlier steps that moco compares with, as its versions 1 and 2 do; none for the run's, else 0,
            which compares the images of a batch.
        momentum: share of the teacher that stays after the first step; it grows to 1 along half a cosine. None for
            0.99 (moco) or 0.996 (dino).
        centre_momentum: share of dino's centre that stays after a step.
        teacher_temperature: of dino's teacher.
        warmup_teacher_temperature: where it starts from, in a straight line.
        warmup_teacher_epochs: over so many epochs.
        freeze_last_epochs: epochs in which dino's prototypes stay as they were drawn.
        patch_loss_weight: of iBOT's loss (2111.07832), by which dino's student also learns what its teacher says of
            patches that are hidden from it (data.mask_ratio, data.mask_probability); none for the run's in weights,
            else 0, which leaves it out; the paper uses 1.
        patch_out: prototypes of a head of the patches' own; none for the run's, else one head for both, as the paper.
        drop_path: stochastic-depth rate of the encoder's last block; the teacher's is 0.
        base_lr: learning rate for 256 images per optimizer step, scaled linearly to the real number of them; none for
            1.5e-4 (simclr, moco) or 5e-4 (dino).
        lr: learning rate as it is, in place of base_lr.
        weight_decay: of the optimizer; none for 0.1 (simclr, moco) or 0.04 (dino).
        weight_decay_end: where it comes to along half a cosine; none for 0.4 in dino where weight_decay is not given
            either, else it stays as it is.
        warmup_epochs: length of the linear warm-up; none for a tenth of the run, at most 10 epochs (dino) or 40.
        watch_every_n_steps: optimizer steps between two looks at whether it learns or has collapsed; 0 never looks.
        watch_images: held-out images that are looked at.
        on_collapse: stop ends a run that has collapsed; back goes back once to the newest checkpoint from before, at a
            tenth of the learning rate; warn goes on.
        sheet_every_n_steps: optimizer steps between sheets of views, attention and neighbours; 0 draws one at the end.
        sheet_images: images on a sheet.
    """

    task_name = "ssl"
    monitor = "val/knn_accuracy"
    settled = frozenset(
        {"backbone", "method", "image_size", "in_chans", "hidden", "out", "temperature", "queue"}
        | {"patch_loss_weight", "patch_out"}
    )

    model: ViewModel

    def __init__(
        self,
        *,
        backbone: str | None = None,
        method: SslMethod | None = None,
        weights: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        in_chans_policy: str | None = None,
        hidden: int | None = None,
        out: int | None = None,
        temperature: float | None = None,
        queue: int | None = None,
        momentum: float | None = None,
        centre_momentum: float = 0.9,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: float = 0.0,
        freeze_last_epochs: float = 1.0,
        patch_loss_weight: float | None = None,
        patch_out: int | None = None,
        drop_path: float = 0.0,
        base_lr: float | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        weight_decay_end: float | None = None,
        warmup_epochs: float | None = None,
        watch_every_n_steps: int = 50,
        watch_images: int = 256,
        on_collapse: OnCollapse = "stop",
        sheet_every_n_steps: int = 500,
        sheet_images: int = 8,
        **kwargs: Any,
    ) -> None:
        run = run_config(weights)
        known = run.architecture if run is not None and run.task == "ssl" else {}
        self.method: str = method or known.get("method", "dino")
        if self.method not in USUAL:
            raise ValueError(f"method={self.method!r} is unknown; use simclr, moco or dino")
        if known.get("method") != self.method:
            known = {}  # the heads of another method are no use
        recipe = RECIPES[self.method]
        if weight_decay_end is None and weight_decay is None:
            weight_decay_end = recipe.get("weight_decay_end")
        base_lr = recipe["base_lr"] if base_lr is None else base_lr
        super().__init__(
            base_lr=base_lr if lr is None else None,
            lr=base_lr if lr is None else lr,
            weight_decay=recipe["weight_decay"] if weight_decay is None else weight_decay,
            warmup_epochs=warmup_epochs or 0.0,
            **kwargs,
        )
        self._usual_warmup = warmup_epochs is None
        self.weight_decay_end = self.weight_decay if weight_decay_end is None else weight_decay_end
        self.momentum = recipe["momentum"] if momentum is None else momentum
        self.centre_momentum = centre_momentum
        self.teacher_temperature = teacher_temperature
        self.warmup_teacher_temperature, self.warmup_teacher_epochs = warmup_teacher_temperature, warmup_teacher_epochs
        self.freeze_last_epochs = freeze_last_epochs
        self.watch_every_n_steps, self.watch_images, self.on_collapse = watch_every_n_steps, watch_images, on_collapse
        self.sheet_every_n_steps, self.sheet_images = sheet_every_n_steps, sheet_images
        self._check()
        found = trunk_options(weights, {"backbone": backbone, "image_size": image_size})
        given: dict[str, Any] = {"hidden": hidden, "out": out, "temperature": temperature, "queue": queue}
        given |= {"patch_loss_weight": patch_loss_weight, "patch_out": patch_out}
        chosen: dict[str, Any] = {k: known.get(k) if v is None else v for k, v in given.items()}
        chosen |= {k: chosen[k] or 0 for k in ("queue", "patch_loss_weight")}
        model = create_ssl(**found, method=self.method, **chosen, in_chans=in_chans, drop_path=drop_path)
        if weights is not None and known and _same_heads(known, chosen):
            self.load_report = load_weights(model, weights, in_chans_policy=in_chans_policy)
        elif weights is not None:
            self.load_report = start_from(model, weights, in_chans_policy)
            self.opening_line = describe_handover(self.load_report, model.encoder)
        self.built = {**found, **chosen, "method": self.method, "weights": None, "in_chans_policy": None}
        self.backbone_name: str = found["backbone"]
        self.use_model(model, in_chans)
        self.features = FeatureSample()
        self._seen: list[Tensor] = []  # of the batches of an optimizer step
        self._total = 0

    def _check(self) -> None:
        for name in ("momentum", "centre_momentum"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                what = "teacher" if name == "momentum" else "centre"
                raise ValueError(
                    f"{name}={value} must be in [0, 1): at 1 the {what} never moves; the papers use 0.9 to 0.996"
                )
        check_temperature("teacher_temperature", self.teacher_temperature)
        check_temperature("warmup_teacher_temperature", self.warmup_teacher_temperature)
        for name, least in (
            ("warmup_teacher_epochs", 0), ("freeze_last_epochs", 0), ("watch_every_n_steps", 0), ("watch_images", 2),
            ("sheet_every_n_steps", 0), ("sheet_images", 1), ("weight_decay_end", 0),
        ):  # fmt: skip
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.weight_decay == 0 and self.weight_decay_end:
            raise ValueError(
                f"weight_decay=0 cannot grow to weight_decay_end={self.weight_decay_end}; give a small weight_decay"
            )
        if self.on_collapse not in ("stop", "back", "warn"):
            raise ValueError(f"on_collapse={self.on_collapse!r} is unknown; use stop, back or warn")
        if self.ema_decay and self.method == "dino":
            raise ValueError(f"ema_decay={self.ema_decay}: dino's teacher is a moving average already; leave it out")

    def use_model(self, model: nn.Module, in_chans: int | None = None) -> None:
        """Also compile what is called: the backbones."""
        super().use_model(model, in_chans)
        if self.compile_model:
            assert isinstance(model, ViewModel)
            model.encoder.compile()
            if model.teacher is not None:
                model.teacher["encoder"].compile()

    def setup(self, stage: str) -> None:
        """Refuse data that the method cannot learn from, before anything is written. Raises ValueError."""
        data: Any = getattr(self.trainer, "datamodule", None)
        options: Any = getattr(data, "options", None)
        if stage != "fit" or data is None or options is None:
            return
        _check_batch(data.batch_size * self.trainer.world_size)
        if self.mask_grid is not None:
            _check_masks(self.mask_grid, options)
        small = getattr(options, "small_views", 0)
        if not small:
            return
        if self.method != "dino":
            raise ValueError(f"data.small_views={small} is for dino; {self.method} compares two views of one size")
        require_capability(self.model.encoder, "any_size", "a view of another size (data.small_views)")
        patch = getattr(getattr(self.model.encoder, "patch_embed", None), "patch_size", 1)
        patch = max(patch) if isinstance(patch, tuple) else patch
        if options.small_size < patch:
            raise ValueError(
                f"data.small_size={options.small_size} is smaller than a patch of {self.backbone_name}, {patch} "
                f"pixels; take a multiple of {patch}"
            )

    @property
    def mask_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the patches that the data hide of a large view; None where nothing is hidden."""
        learns = isinstance(self.model, Dino) and self.model.patch_loss_weight
        return self.model.mask_grid(self.preprocess.image_size) if learns else None  # type: ignore[operator]

    # ---- training ---------------------------------------------------------------------------------------------------

    def take_batch(self, batch: Any) -> ViewBatch | ImageBatch:
        """Several views (B, C, H, W) uint8 of each image -> :class:`ViewBatch`; batches of ours as they are."""
        return view_batch(batch)

    def on_train_start(self) -> None:
        """Also know the length of the schedules, and forget batches of a step that was broken off."""
        super().on_train_start()
        self._total = self._total_steps()
        self._seen = []

    def train_loss(self, batch: ViewBatch) -> LossPart:
        """The loss of the views (B, C, H, W) of each image."""
        if not isinstance(batch, ViewBatch):
            raise ValueError(f"training needs several views of each image, got {type(batch).__name__}")
        _check_batch(len(batch.images) * self.trainer.world_size)
        self._set_teacher()
        found = self.model.loss([self.normalize(view) for view in batch.views], gather_features, batch.hidden)
        if found.seen is not None:
            self._seen.append(found.seen)
        return LossPart(found.loss, {k: v.detach() for k, v in found.parts.items()}, len(batch.images))

    def _set_teacher(self) -> None:
        if isinstance(self.model, Dino):
            self.model.centre_momentum = self.centre_momentum
            done = self._done_of(self.warmup_teacher_epochs)
            start = self.warmup_teacher_temperature
            self.model.teacher_temperature = start + done * (self.teacher_temperature - start)

    def _done_of(self, epochs: float) -> float:
        """The share that is done of a warm-up of so many epochs, in [0, 1]."""
        steps = epochs * (self._steps_per_epoch() or 0)
        return 1.0 if steps <= 0 else min(1.0, self.trainer.global_step / steps)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave dino's prototypes as they were drawn, at first; and decay weights as the schedule says."""
        if isinstance(self.model, Dino) and self._done_of(self.freeze_last_epochs) < 1:
            self.model.freeze_prototypes()
        if self.weight_decay_end != self.weight_decay:
            decay = half_cosine(self.trainer.global_step, self._total, self.weight_decay, self.weight_decay_end)
            for group in optimizer.param_groups:
                if group.get("weight_decay"):  # norms, biases and tokens are never decayed
                    group["weight_decay"] = decay

    def after_step(self) -> None:
        """Remember the batches of the step, and move the teacher."""
        for seen in self._seen:
            self.model.remember(seen, gather_features)
        self._seen = []
        self.model.follow(momentum_at(self.trainer.global_step, self._total, self.momentum))

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def update_evaluation(self, batch: ImageBatch | ViewBatch) -> None:
        """Add the features of (B, C, H, W) images, with their labels (B,) where there are some."""
        if len(batch.images):
            features = self.model.evaluated(self.normalize(batch.images)).pooled
            self.features.add(features, batch.labels, batch.index)

    def finish_evaluation(self) -> dict[str, Tensor]:
        """``knn_accuracy`` where there are labels, ``effective_rank``, ``uniformity`` and ``dead_share``."""
        features, labels, _ = self.features.finish()
        scores = feature_scores(features, labels) if len(features) > 1 else {}
        if "knn_accuracy" not in scores:
            self.monitor = "val/effective_rank"  # RankMe (arXiv 2210.02885) chooses without labels
        return {name: torch.tensor(value) for name, value in scores.items()}

    @torch.no_grad()
    def measure(self, data: Any) -> dict[str, float]:
        """What the features of held-out images say now, for :class:`Watch`; in eval mode.

        With the scores of an evaluation come ``alignment`` and ``spread`` of views, what the heads say
        (:meth:`ViewModel.signs`), and ``teacher_gap``, the mean cosine distance of student and teacher.
        """
        images = data.sample_batch(self.watch_images).to(self.device)
        views = [self.normalize(v) for v in data.sample_views(images.index.tolist()).to(self.device).views[:2]]
        self._set_teacher()
        network = self.model.evaluated
        first, second = (network(view).pooled.float().cpu() for view in views)
        features = network(self.normalize(images.images)).pooled.float().cpu()
        signs = feature_scores(features, images.labels.cpu())
        signs |= {"alignment": alignment(first, second), "spread": spread(first), "images": float(len(first))}
        signs |= self.model.signs(views)
        if self.model.teacher is not None:
            student, teacher = (n(views[0]).pooled for n in (self.model.encoder, self.model.teacher["encoder"]))
            signs["teacher_gap"] = float(1 - torch.cosine_similarity(student.float(), teacher.float()).mean())
        return signs

    def on_predict_epoch_start(self) -> None:
        """Raises ValueError: there is nothing to name images by."""
        raise ValueError(
            "a backbone that was pretrained without labels names nothing; `visionzoo embed` writes its features, "
            "`visionzoo probe` scores them"
        )

    def export_model(self) -> tuple[nn.Module, ModelConfig]:
        """The backbone and its heads; in dino the teacher's."""
        config = ModelConfig(task="ssl", architecture=self.model.architecture, preprocess=self.preprocess)
        return self.model.exported(), config

    def run_callbacks(self) -> list[Callback]:
        """Whether it learns, and sheets."""
        watch = Watch(self.watch_every_n_steps, self.on_collapse)
        return [watch, Sheets(self.sheet_every_n_steps, self.sheet_images)]

    @torch.no_grad()
    def draw_sheet(self, batch: ImageBatch, out: Path, title: str = "") -> Path:
        """Draw held-out images (B, C, H, W), each with its views, the attention of heads where the backbone has such,
        and the images that are nearest to it."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        among = data.sample_batch(AMONG).to(self.device)
        network, images = self.model.evaluated, self.normalize(batch.images.to(self.device))
        features, others = network(images).pooled, network(self.normalize(among.images)).pooled
        near = nearest_places(features.float(), others.float(), batch.index.tolist(), among.index.tolist())
        views = data.sample_views(batch.index.tolist()).views
        columns = [("image", _pixels(batch.images))]
        columns += [(f"view {n}", _pixels(view)) for n, view in enumerate(views[:VIEWS], 1)]
        columns += [(f"head {n}", heads) for n, heads in enumerate(head_attention(network, images), 1)]
        pictures = _pixels(among.images)
        columns += [(f"near {n}", pictures[list(places)]) for n, places in enumerate(zip(*near, strict=True), 1)]
        return view_sheet(columns, out, title)

    def draw_results(self, folder: RunFolder) -> None:
        """Draw the sheet of the exported weights."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        batch = data.sample_batch(self.sheet_images)
        if len(batch.images) > 1:
            self.draw_sheet(batch, folder.views, title="Held-out images")

    def summary(self, metrics: Mapping[str, float]) -> str:
        """k-NN accuracy and effective rank."""
        parts = []
        if "knn_accuracy" in metrics:
            parts.append(f"k-NN accuracy {100 * metrics['knn_accuracy']:.2f} %")
        if "effective_rank" in metrics:
            parts.append(f"effective rank {metrics['effective_rank']:.1f}")
        return f"{', '.join(parts)} of the features of held-out images" if parts else ""

    def _warmup(self, total: int) -> int:
        if not self._usual_warmup or self.warmup_steps > 0:
            return super()._warmup(total)
        per_epoch, most = self._steps_per_epoch(), 10 if self.method == "dino" else 40
        return total // 10 if per_epoch is None else min(round(most * per_epoch), total // 10)


def _pixels(images: Tensor) -> np.ndarray:
    """(B, C, H, W) uint8 -> (B, H, W, 1 or 3); of 2 or more than 3 channels the first is drawn."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return pixels if pixels.shape[3] in (1, 3) else pixels[..., :1]


def _same_heads(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a run whose architecture was ``then`` has heads for what ``now`` learns from: views, or patches too."""
    return bool(then.get("patch_loss_weight")) == bool(now["patch_loss_weight"]) and (
        then.get("patch_out") == now["patch_out"]
    )


def half_cosine(step: int, total: int, start: float, end: float) -> float:
    """``start`` at step 0 and ``end`` at step ``total``, along half a cosine: of the weight decay (DINO, arXiv
    2104.14294, appendix) and of the teacher's momentum."""
    done = min(1.0, step / max(1, total))
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def momentum_at(step: int, total: int, momentum: float) -> float:
    """The share of the teacher that stays after optimizer step ``step`` of ``total``: half a cosine from ``momentum``
    to 1 (BYOL, arXiv 2006.07733, section 3.2)."""
    return half_cosine(step, total, momentum, 1.0)


def _check_masks(grid: tuple[int, int], options: Any) -> None:
    """Raises ValueError for options by which no patch of a (rows, columns) grid would be hidden."""
    ratio, probability = getattr(options, "mask_ratio", None), getattr(options, "mask_probability", None)
    if ratio is None:  # data of others, which hide what they will
        return
    patches = grid[0] * grid[1]
    if probability == 0 or ratio[1] * patches < 1 or min(grid) < 2:
        raise ValueError(
            f"data.mask_ratio={tuple(ratio)} with data.mask_probability={probability} hides none of the {patches} "
            f"patches ({grid[0]}x{grid[1]}) of a large view; raise them, or take larger images or smaller patches"
        )


def _check_batch(images: int) -> None:
    if images < 2:
        raise ValueError(
            f"a step of {images} image has nothing to tell it from; give --data.batch_size 2 or more (256 is usual), "
            "and --data.drop_last true where the last one of an epoch is left alone"
        )
