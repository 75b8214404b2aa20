"""Train and evaluate an image classifier."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from visionzoo.losses.classification import balanced_class_weights, cross_entropy, named_loss
from visionzoo.models.bundle import ModelConfig, read_config
from visionzoo.models.calibration import Calibration
from visionzoo.models.classifier import Classifier, create_classifier, head_dropout
from visionzoo.runs import RunFolder
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.batches import image_batch
from visionzoo.tasks.class_names import class_difference, class_places, known_classes
from visionzoo.tasks.classify_evaluation import ClassificationEvaluation, EvaluationResults
from visionzoo.tasks.engine.learning import Learning
from visionzoo.tasks.handover import describe_handover, run_config, trunk_options
from visionzoo.tasks.interface import LossPart
from visionzoo.tasks.lora import add_adapters, merged_copy, with_statistics
from visionzoo.tasks.mixing import Mixer, soft_targets
from visionzoo.tasks.pictures import LISTED, PictureChoice
from visionzoo.tasks.record_answers import record_answers
from visionzoo.types import ImageBatch
from visionzoo.weights import load_weights


class ClassifyTask(VisionTask):
    """Fine-tune a backbone, or train one from scratch, to name what is in an image.

    Args:
        num_classes: set from the data.
        classes: names of the classes, set from the data. Where the weights know the same names in another order, theirs
            is kept: ``self.classes`` has the order of the logits, and labels are brought into it.
        multi_label: an image may have several labels, set from the data.
        class_counts: training images of each class, set from the data.
        backbone: a name from ``visionzoo models``, or timm/<name>; not needed when weights is a run folder.
        weights: a local file or folder, a run folder, hf-hub:org/name or timm:tag; none trains from scratch.
        image_size: height and width of the model's input in pixels, one number or two; none for the backbone's own.
        in_chans: channels of the images.
        in_chans_policy: how stored weights become in_chans channels, see visionzoo.load_weights.
        global_pool: token or avg, where the backbone allows another pooling than its own.
        drop_path: stochastic-depth rate of the last block; earlier blocks get linearly less.
        drop_rate: dropout before the head.
        loss: none for cross_entropy, or binary_cross_entropy where an image may have several labels; or the name of a
            registered one (visionzoo.register_loss). binary_cross_entropy takes each class against the others.
        label_smoothing: share of each target spread over all classes.
        mixup: Beta parameter of mixup; 0 turns it off.
        cutmix: Beta parameter of CutMix; 0 turns it off; with both on, each batch draws one.
        class_weights: none, or balanced, which weighs each class by the inverse of its training images.
        finetune: full trains everything, head only the classifier on a frozen backbone (a linear probe), lora small
            adapters beside every linear layer and the head.
        lora_rank: width of the adapters.
        lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank.
    """

    task_name = "classify"
    class_weights: Tensor | None
    class_places: Tensor | None  #: (K,) int64, from a label of the data to a logit; None where they are the same
    prediction_columns = ("label", "probability")
    settled = frozenset(
        {"num_classes", "multi_label", "backbone", "image_size", "in_chans", "global_pool", "finetune"}
        | {"lora_rank", "lora_alpha"}
    )

    def __init__(
        self,
        *,
        num_classes: int,
        classes: Sequence[str] = (),
        multi_label: bool = False,
        class_counts: Sequence[int] | None = None,
        backbone: str | None = None,
        weights: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        in_chans_policy: str | None = None,
        global_pool: str | None = None,
        drop_path: float = 0.0,
        drop_rate: float = 0.0,
        loss: str | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
        finetune: Literal["full", "head", "lora"] = "full",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        if finetune not in ("full", "head", "lora"):
            raise ValueError(f"finetune={finetune!r} is unknown; use full, head or lora")
        if classes and len(classes) != num_classes:
            raise ValueError(f"{len(classes)} class names do not fit num_classes={num_classes}")
        self.class_names = tuple(classes)  #: in the order of the labels; empty where nobody gave them
        self.num_classes, self.multi_label, self.finetune = num_classes, multi_label, finetune
        self.label_smoothing = label_smoothing
        if multi_label and loss == "cross_entropy":
            raise ValueError("loss=cross_entropy is for one label an image, and these have several; leave it out")
        self.loss = named_loss(loss or ("binary_cross_entropy" if multi_label else "cross_entropy"))
        self.monitor = "val/map" if multi_label else "val/accuracy"
        self.mixer = Mixer(mixup, cutmix)
        self._balanced = _class_weights(class_weights, class_counts)
        self.register_buffer("class_weights", self._balanced, persistent=False)
        self.register_buffer("class_places", None, persistent=False)

        given = {"backbone": backbone, "image_size": image_size, "global_pool": global_pool}
        architecture = {**trunk_options(weights, given), "in_chans": in_chans}
        model = create_classifier(num_classes=num_classes, drop_path=drop_path, drop_rate=drop_rate, **architecture)
        fresh = {k: v.clone() for k, v in model.state_dict().items() if k in model.head_keys()}
        self.load_report = load_weights(model, weights, in_chans_policy=in_chans_policy) if weights else None
        if self.load_report is not None:
            self.opening_line = describe_handover(self.load_report, model)
        self.classes = self.class_names or tuple(str(i) for i in range(num_classes))  #: in the order of the logits
        self.named = bool(self.class_names)  #: whether these are names, not numbers
        self.other_classes = ""  #: how the classes of the weights differ from those of the data, if they do
        self._match_head(weights, model, fresh)
        self.built = {**architecture, "weights": None, "in_chans_policy": None}
        if finetune != "full":
            _freeze_trunk(model)
        self.can_shard = finetune != "lora"  # adapters are exported as a merged copy
        if finetune == "lora":
            add_adapters(model, rank=lora_rank, alpha=lora_alpha, keep=model.head_prefixes)
        self.backbone_name: str = architecture["backbone"]
        self.use_model(model, in_chans)
        self.evaluation = ClassificationEvaluation(num_classes, multi_label)
        self.results: EvaluationResults | None = None

    def _match_head(self, weights: str | None, model: Classifier, fresh: Mapping[str, Tensor]) -> None:
        """Match the classes of the weights by name; a head for other classes is put back to ``fresh``."""
        known = known_classes(weights)
        if not known or (not self.class_names and len(known) != self.num_classes):
            return
        self.other_classes = self._match_classes(known)
        if self.other_classes:
            for key, tensor in model.state_dict().items():
                if key in fresh:
                    tensor.copy_(fresh[key])

    def _match_classes(self, known: Sequence[str]) -> str:
        """Take the order of ``known``, the classes by logit; or say how they differ from those of the data."""
        given = self.class_names or tuple(known)
        if difference := class_difference(known, given):
            return difference
        places = torch.tensor(class_places(known, given), device=self.device)
        self.classes, self.named = tuple(known), True
        self.class_places = None if self.classes == given else places
        if self.class_weights is not None and self._balanced is not None:  # which are by label
            self.class_weights = torch.empty_like(self.class_weights).index_copy_(
                0, places, self._balanced.to(self.device)
            )
        return ""

    def _by_logit(self, labels: Tensor) -> Tensor:
        """Labels as the data number them -> as the logits do."""
        if self.class_places is None:
            return labels
        if self.multi_label:
            return torch.empty_like(labels).index_copy_(1, self.class_places, labels)
        return self.class_places[labels]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, K) float32 logits."""
        return self.model(self.normalize(images)).float()

    def take_batch(self, batch: Any) -> ImageBatch:
        """(B, C, H, W) uint8 with labels (B,) or (B, K) -> :class:`ImageBatch`."""
        return image_batch(batch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget what was said of weights that are about to change: an export would take it for theirs."""
        self.results = None

    def loss_parts(self, batch: ImageBatch, size: int | None) -> Iterator[LossPart]:
        images, targets = batch.images, self._by_logit(batch.labels)
        if self.mixer.active:  # partners come from the whole batch
            images, targets = self.mixer(self.normalize(images), soft_targets(targets, self.num_classes))
        if size is None or size >= len(images):
            yield self._loss_part(images, targets)
            return
        whole, done = self._weight(targets), 0
        for some, their in zip(images.split(size), targets.split(size), strict=True):
            done += len(some)
            share, last = len(some) / len(images), done == len(images)
            yield self._loss_part(some, their, share, self._weight(their) / whole, last)

    def _loss_part(
        self, images: Tensor, targets: Tensor, share: float = 1.0, loss_share: Tensor | float = 1.0, last: bool = True
    ) -> LossPart:
        """The loss of some images.

        Args:
            images: (B, C, H, W) uint8, or normalised where images are mixed.
            targets: (B,) or (B, K).
            share: theirs of the batch.
            loss_share: theirs of the weights in the batch's mean loss.
            last: whether they are the last of the batch.
        """
        logits = self.model(images if self.mixer.active else self.normalize(images))
        logs = {}
        if not self.multi_label:
            # under mixup a prediction counts as right when it names the larger part
            named = targets if targets.ndim == 1 else targets.argmax(1)
            logs["accuracy"] = (logits.argmax(1) == named).float().mean() * share
        loss = self._loss(logits, targets, self.label_smoothing) * loss_share
        return LossPart(loss, logs, len(images), last)

    def _weight(self, targets: Tensor) -> Tensor:
        """What the mean that is the loss divides by."""
        if self.multi_label or self.class_weights is None or self.loss is not cross_entropy:
            return torch.full((), float(len(targets)), device=targets.device)
        if targets.ndim == 1:
            return self.class_weights[targets].sum()
        return (targets * self.class_weights).sum()

    def _loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        return self.loss(logits, targets, label_smoothing=smoothing, class_weights=self.class_weights)

    def update_evaluation(self, batch: ImageBatch) -> None:
        """Score (B, C, H, W) images with labels (B,) or (B, K); B may be 0."""
        if len(batch.images) == 0:
            return
        logits, labels = self(batch.images), self._by_logit(batch.labels)
        loss = self._loss(logits, labels)
        self.evaluation.update(logits, labels, loss, batch.images, batch.index, self._weight(labels))

    def finish_evaluation(self) -> dict[str, Tensor]:
        """Loss and scores; what pictures need stays in ``results``."""
        values, self.results = self.evaluation.compute()
        return values

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """(B, K) probabilities."""
        del batch_idx
        logits = self(self.take_batch(batch).images)
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def prediction_rows(self, outputs: Tensor) -> list[tuple[str, ...]]:
        """From (B, K) probabilities the likeliest class of each image; for multi-label data every class of at least
        one half."""
        if not self.multi_label:
            best = zip(*(t.tolist() for t in outputs.max(1)), strict=True)
            return [(self.classes[k], f"{p:.6f}") for p, k in best]
        chosen = [[(self.classes[k], p) for k, p in enumerate(row) if p >= 0.5] for row in outputs.tolist()]
        return [("|".join(n for n, _ in row), "|".join(f"{p:.6f}" for _, p in row)) for row in chosen]

    def setup(self, stage: str) -> None:
        """Refuse to score, and warn of fitting, where the classes of the weights are others."""
        report = self.load_report
        if report is None or (self._trainer is not None and self._trainer.ckpt_path):  # whose head is to come
            return
        assert isinstance(self.model, Classifier)
        if self.other_classes and stage == "fit":
            warnings.warn(
                f"the head starts afresh: {report.source} was trained on other classes ({self.other_classes})",
                stacklevel=2,
            )
        elif self.other_classes:
            raise ValueError(
                f"classes are matched by name, and {report.source} was trained on others: {self.other_classes}. Rename "
                "the data's, give their names in the order of the weights by --data.classes, or fit a head first"
            )
        elif stage != "fit" and set(report.reset) & self.model.head_keys():
            raise ValueError(
                f"the weights have no head for these {self.num_classes} classes, so a score would mean nothing; "
                f"give data with the classes of the weights, or fit a head first"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also the names of the classes, in the order of the logits."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = list(self.classes) if self.named else None
        options = checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]
        options["classes"] = checkpoint["classes"] or []
        if self.class_places is not None and options.get("class_counts") is not None:
            options["class_counts"] = [options["class_counts"][i] for i in self.class_places.argsort().tolist()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Match the classes of the run by name. Raises ValueError for others."""
        super().on_load_checkpoint(checkpoint)
        known = checkpoint.get("classes")
        if known and (difference := self._match_classes(known)):
            raise ValueError(
                f"classes are matched by name, and the run was trained on others: {difference}. Rename the data's, "
                "give their names in the order of the run by --data.classes, or start a new run with --model.weights"
            )

    def export_model(self) -> tuple[nn.Module, ModelConfig]:
        """The classifier, adapters merged, its class names, and what the last evaluation says of its probabilities."""
        model = merged_copy(self.model) if self.finetune == "lora" else self.model
        assert isinstance(model, Classifier)
        config = ModelConfig(
            task=self.task_name,
            architecture=model.architecture,
            preprocess=self.preprocess,
            labels=self.classes if self.named else (),
            multi_label=self.multi_label,
            calibration=None if self.results is None else self.results.calibration,
        )
        return model, config

    def run_callbacks(self) -> list[Callback]:
        """What is learned when."""
        return [Learning()]

    def _learning(self) -> Learning:
        """That of the trainer; one that has seen nothing where it has none."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((c for c in callbacks if isinstance(c, Learning)), Learning())

    def begin_results(self) -> None:
        """Keep pictures of mistakes and of what is right, and of what was learned last."""
        if not self.multi_label:
            self.evaluation.pictures = PictureChoice(self._learning().slowest(LISTED))

    def draw_results(self, folder: RunFolder) -> None:
        """Scores per class, confusion matrix and the most confident mistakes; and what was answered, for a page."""
        from visionzoo import viz
        from visionzoo.metrics.classification import class_scores

        if self.results is None:
            return
        viz.per_class_csv(class_scores(self.results.counts), self.classes, folder.per_class)
        if self.multi_label:
            return
        if self.results.matrix is not None:
            viz.confusion_matrix(self.results.matrix, self.classes, folder.confusion_matrix)
        items = [
            (m.image, self.classes[m.label], self.classes[m.predicted], m.confidence) for m in self.results.mistakes
        ]
        viz.mistakes_sheet(items, folder.mistakes)
        stage = "test" if self.trainer.state.fn == "test" else "val"
        source = getattr(getattr(self.trainer, "datamodule", None), f"{stage}_source", None)
        record_answers(
            folder.answers,
            self.results,
            self.classes,
            stage=stage,
            source=source,
            calibration=self._known_calibration(folder),
            learning=self._learning(),
        )

    def _known_calibration(self, folder: RunFolder) -> Calibration | None:
        """What probabilities of the model have that was evaluated: that of the run, or of the run it was taken from."""
        config = read_config(folder.path) if folder.model_config.is_file() else run_config(self.hparams.get("weights"))
        if config is not None and config.task == self.task_name:
            return config.calibration
        return None if self.results is None else self.results.calibration

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Accuracies in percent, the number of images, and the expected calibration error."""
        names = {"accuracy": "top-1 accuracy", "top5": "top-5 accuracy", "map": "mean average precision", "f1": "F1"}
        parts = [f"{text} {100 * metrics[key]:.2f} %" for key, text in names.items() if key in metrics]
        images = int(self.results.counts.sum()) if self.results is not None and self.results.matrix is not None else 0
        line = ", ".join(parts) + (f" on {images:,} held-out images" if images else "")
        if self.results is None or (found := self.results.calibration) is None:
            return line
        raw, mended = (f"{100 * error:.2f} %" for error in found.error)
        # each half of the images by the temperature of the other: on its own it would look better than it is
        return f"{line}; calibration error {raw}, with a temperature (cross-fitted) {mended}"

    def frozen_modules(self) -> list[nn.Module]:
        """Everything but the head and its dropout, for a linear probe; what has running statistics, beside adapters."""
        if self.finetune == "full":
            return []
        heads: Any = self.model.get_classifier()  # type: ignore[operator]
        kept = {m for h in (heads if isinstance(heads, tuple) else (heads,)) for m in h.modules()}
        kept.add(head_dropout(self.model))  # the dropout in front of the head is the head's
        rest = [m for m in self.model.modules() if m not in kept]
        return rest if self.finetune == "head" else with_statistics(rest)


def _class_weights(policy: str, counts: Sequence[int] | None) -> Tensor | None:
    if policy == "none":
        return None
    if policy != "balanced":
        raise ValueError(f"class_weights={policy!r} is unknown; use none or balanced")
    if counts is None:
        raise ValueError("class_weights=balanced needs class_counts, the training images of each class")
    return balanced_class_weights(torch.as_tensor([int(c) for c in counts]))


def _freeze_trunk(model: Classifier) -> None:
    for parameter in model.trunk_parameters():
        parameter.requires_grad_(False)
