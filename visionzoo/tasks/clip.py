"""Train images and texts into one space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.losses.contrastive import info_nce, sigmoid_loss
from visionzoo.losses.gather import cached_losses, gather_features
from visionzoo.models.bundle import ModelConfig
from visionzoo.models.clip import Clip, create_clip
from visionzoo.models.clip.interpolate import interpolated
from visionzoo.models.trunk import trunk_name
from visionzoo.runs import RunFolder
from visionzoo.runs.gallery import write_gallery
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.batches import caption_batch
from visionzoo.tasks.clip_evaluation import ClipEvaluation, Found, Share, text_groups
from visionzoo.tasks.frozen_features import FrozenFeatures
from visionzoo.tasks.handover import describe_handover, run_config, trunk_options
from visionzoo.tasks.interface import LossPart
from visionzoo.tasks.record_answers import record_answers
from visionzoo.tasks.retrieval_pictures import retrieval_gallery
from visionzoo.tasks.step import Step
from visionzoo.types import CaptionBatch, ImageBatch, to_device
from visionzoo.weights import load_weights
from visionzoo.weights.fingerprint import model_fingerprint

#: Sentences about classes that are encoded at a time.
TEXTS = 256


class ClipTask(VisionTask):
    """Contrastive image-text training: CLIP's loss (arXiv 2103.00020) or SigLIP's (arXiv 2303.15343).

    Args:
        zero_shot_classes: names of the classes of the zero-shot images, set from the data.
        zero_shot_templates: sentences that a class name is put into, set from the data.
        fixed_images: whether training images are the same in every epoch, set from the data.
        name: open_clip's name of a model, such as ViT-B-32; or give a backbone.
        backbone: image backbone from ``visionzoo models``, with a text tower of the size ``text`` beside it.
        weights: a whole CLIP to start from (a run of this task, or released weights with their configuration); or a
            run of another task (mae, classify), whose backbone becomes the image tower.
        image_weights: instead of weights, those of the image backbone alone: a file, a folder, a run of another task,
            or timm:tag.
        image_size: height and width of the model's input in pixels, one number or two; none for the model's own.
        text: size of the text tower beside a backbone: nano, tiny, small, base, large or huge.
        text_width: width instead of the size's.
        text_layers: blocks instead of the size's.
        text_heads: heads instead of the size's.
        context_length: tokens of a text, start and end included; none for 77.
        vocab_size: tokens that the text tower knows; none for those of the tokenizer.
        end_id: id of the end token; none for the tokenizer's, or the highest id of a text where a vocab_size is given.
        embed_dim: width of the joint space; none for the text tower's.
        loss: softmax (CLIP) or sigmoid (SigLIP) beside a backbone; none for softmax, or what the named model has.
        tokenizer: clip, or a folder with a tokenizer of transformers, which is copied into the run; none for clip.
        activation: gelu, quick_gelu or gelu_tanh, as the weights were trained; none for what is recorded with them.
        image_statistics: openai, imagenet or inception, as the weights were trained; none for what is recorded.
        patch_dropout: share of the patches that are left out of each training image (FLIP).
        drop_path: stochastic-depth rate of the image tower's last block.
        lock_image: freeze the image backbone and train the rest (LiT). What it makes of an image is computed once where
            images are the same in every epoch (crop=resize, nothing that varies).
        embedding_cache: folder of the features of a locked backbone; none for the user's cache, off for no cache.
        micro_batch: encode this many pairs at a time and still take the loss over the whole batch (GradCache); 0 for
            all at once. BatchNorm then sees one part at a time.
        choose_by: the score on held-out images by which the best epoch is chosen: recall (the mean of all six) or
            accuracy (zero-shot).
        wise_ft: share of the trained weights in what is exported, the rest being those it started from (WiSE-FT, arXiv
            2109.01903); 1 exports the trained weights, 0.5 is the paper's choice. Scores while it trains are those of
            the trained weights; the last line scores what is exported.
        betas: AdamW's two momenta.
        weight_decay: AdamW's weight decay; norms, biases, tokens, position tables and the temperature are not decayed.
    """

    task_name = "clip"
    prediction_columns = ("label", "probability")
    settled = frozenset(
        {"name", "backbone", "image_size", "text", "text_width", "text_layers", "text_heads", "context_length"}
        | {"vocab_size", "end_id", "embed_dim", "loss", "tokenizer", "activation", "image_statistics"}
        | {"lock_image", "choose_by"}
    )

    model: Clip

    def __init__(
        self,
        *,
        zero_shot_classes: Sequence[str] = (),
        zero_shot_templates: Sequence[str] = ("a photo of a {}.",),
        fixed_images: bool = False,
        name: str | None = None,
        backbone: str | None = None,
        weights: str | None = None,
        image_weights: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        text: str | None = None,
        text_width: int | None = None,
        text_layers: int | None = None,
        text_heads: int | None = None,
        context_length: int | None = None,
        vocab_size: int | None = None,
        end_id: int | None = None,
        embed_dim: int | None = None,
        loss: Literal["softmax", "sigmoid"] | None = None,
        tokenizer: str | None = None,
        activation: str | None = None,
        image_statistics: str | None = None,
        patch_dropout: float = 0.0,
        drop_path: float = 0.0,
        lock_image: bool = False,
        embedding_cache: str | None = None,
        micro_batch: int = 0,
        choose_by: Literal["recall", "accuracy"] = "recall",
        wise_ft: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(betas=betas, weight_decay=weight_decay, **kwargs)
        if not 0 < wise_ft <= 1:
            raise ValueError(f"wise_ft={wise_ft} must be above 0 and at most 1; 1 exports the trained weights")
        started = run_config(weights)
        if wise_ft < 1 and started is not None and started.task != "clip":
            raise ValueError(_no_start(wise_ft))
        if choose_by not in ("recall", "accuracy"):
            raise ValueError(f"choose_by={choose_by!r} is unknown; use recall or accuracy")
        if choose_by == "accuracy" and not zero_shot_classes:
            raise ValueError("choose_by=accuracy needs labelled images; give --data.zero_shot_path")
        if micro_batch < 0:
            raise ValueError(f"micro_batch={micro_batch} must be at least 0; 0 encodes all pairs at once")
        if bare := [t for t in zero_shot_templates if "{}" not in t]:
            raise ValueError(f"template {bare[0]!r} needs {{}} for the class name, such as 'a photo of a {{}}.'")
        if self.layer_decay != 1:
            raise ValueError(f"layer_decay={self.layer_decay}: two towers have no one order of layers; use 1")
        self.zero_shot_classes, self.zero_shot_templates = tuple(zero_shot_classes), tuple(zero_shot_templates)
        self.monitor = "val/accuracy" if choose_by == "accuracy" else "val/recall_mean"
        self.micro_batch, self.wise_ft = micro_batch, wise_ft
        self.score_before = (weights or image_weights) is not None and bool(zero_shot_classes)

        options = {
            "image_size": image_size, "text": text, "text_width": text_width, "text_layers": text_layers,
            "text_heads": text_heads, "context_length": context_length, "vocab_size": vocab_size, "end_id": end_id,
            "embed_dim": embed_dim, "loss": loss,
            "tokenizer": tokenizer, "activation": activation, "preprocess": image_statistics,
            "patch_dropout": patch_dropout, "drop_path": drop_path,
        }  # fmt: skip
        model, self.opening_line = _build(name, backbone, weights, image_weights, options)
        self.built = _rebuilding(model)
        self.start: dict[str, Tensor] | None = None  #: what the trained weights are mixed with
        if wise_ft < 1 and weights is not None:
            self.start = {k: v.clone() for k, v in model.state_dict().items()}
        #: What the locked backbone makes of images that stay as they are.
        self.frozen: FrozenFeatures | None = None
        if lock_image:
            model.lock_image_tower()
            if fixed_images:
                self.frozen = FrozenFeatures(self._pooled, self._backbone_identity, embedding_cache)
        self.backbone_name: str = name or model.visual.trunk.name
        self.use_model(model)
        self.evaluation = ClipEvaluation(model.embed_dim)
        #: Captions that had to be cut in the last epoch of training, and of evaluation.
        self.train_cut, self.held_out_cut = Share(), Share()
        self.found: list[Found] = []
        self._cut: dict[str, list[int]] = {}
        self._class_features: Tensor | None = None
        if self.frozen is not None and self.frozen.folder is not None:
            kept = f"features of the locked image backbone are kept in {self.frozen.folder}"
            self.opening_line = "\n".join(line for line in (self.opening_line, kept) if line)

    # ---- images -----------------------------------------------------------------------------------------------------

    def use_model(self, model: nn.Module, in_chans: int | None = None) -> None:
        super().use_model(model, in_chans)
        if self.frozen is not None:
            self.frozen.forget()

    def setup(self, stage: str) -> None:
        if self.frozen is not None:
            self.frozen.forget()  # weights may come from a checkpoint after this

    def on_fit_start(self) -> None:
        """Raises ValueError for a ``wise_ft`` that has nothing to mix with; a checkpoint has been loaded by now."""
        super().on_fit_start()
        if self.wise_ft < 1 and self.start is None:
            raise ValueError(_no_start(self.wise_ft))

    def _pooled(self, images: Tensor) -> list[Tensor]:
        return [self.model.visual.pooled(self.normalize(images))]

    def _backbone_identity(self) -> str:
        """Everything that the features of an image depend on beside its pixels."""
        precision = str(self._trainer.precision) if self._trainer is not None else "32-true"
        return model_fingerprint(
            self.model.visual.trunk, preprocess=self.preprocess, precision=precision, context="pooled"
        )

    def read(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> what :meth:`encode_read` goes on with: normalised images, or (B, D) kept features."""
        return self.normalize(images) if self.frozen is None else self.frozen(images)[0]

    def encode_read(self, read: Tensor) -> Tensor:
        """What :meth:`read` gave -> (B, E) of length one, with gradients for what is trained of the image tower."""
        if self.frozen is None:
            return self.model.encode_image(read, normalize=True)
        return F.normalize(self.model.visual.head(read), dim=-1)

    # ---- training ---------------------------------------------------------------------------------------------------

    def take_batch(self, batch: Any) -> CaptionBatch | ImageBatch:
        """(B, C, H, W) uint8 with one text for each -> :class:`CaptionBatch`; batches of ours as they are."""
        return caption_batch(batch)

    def encode(self, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What :meth:`read` gave of B images and (B, L) ids -> both features, (B, E) of length one."""
        if self.frozen is not None:
            return self.encode_read(part[0]), self.model.encode_text(part[1], normalize=True)
        image_features, text_features, *_ = self.model(*part)
        return image_features, text_features

    def contrast(self, images: Tensor, texts: Tensor, groups: Tensor | None) -> Tensor:
        """The loss of features, over the pairs of all processes; ``groups`` (B,) are equal where captions are."""
        scale, bias = self.model.logit_scale, self.model.logit_bias
        if bias is None:
            return info_nce(images, texts, scale, groups=groups, gather=gather_features)
        return sigmoid_loss(images, texts, scale, bias, groups=groups, gather=gather_features)

    def _groups(self, ids: Tensor) -> Tensor | None:
        """(B,) for :meth:`contrast`, of (B, L) token ids; None where no two captions are equal."""
        groups = text_groups(ids)
        if self.trainer.world_size == 1 and len(groups.unique()) == len(groups):
            return None
        return to_device(groups, self.device)

    def _ids(self, texts: Sequence[str], cut: Share) -> Tensor:
        """(T, L) token ids; those that had to be cut are counted."""
        tokenizer = self.model.tokenizer
        before = tokenizer.truncated
        ids = tokenizer(list(texts))  # on the CPU, where the tower sees how long they are without waiting
        cut.update(tokenizer.truncated - before, len(ids))
        return ids

    def loss_parts(self, batch: CaptionBatch, size: int | None) -> Iterator[LossPart]:
        """The loss of all pairs of a batch; with ``micro_batch`` through the gradient cache."""
        images, ids = self.read(batch.images), self._ids(batch.texts, self.train_cut)
        contrast = partial(self.contrast, groups=self._groups(ids))
        logs = {"temperature": 1 / self.model.logit_scale.exp()}
        if not self.micro_batch:
            yield LossPart(contrast(*self.encode((images, ids))), logs, len(images))
            return
        size = size or self.micro_batch
        parts = list(zip(images.split(size), ids.split(size), strict=True))
        shared = [p for p in (self.model.logit_scale, self.model.logit_bias) if p is not None]
        losses = cached_losses(self.encode, parts, contrast, shared=shared, statistics=self.running_statistics)
        for number, ((some, _), (loss, value)) in enumerate(zip(parts, losses, strict=True)):
            last = number + 1 == len(parts)
            if number:  # the loss is that of all parts, and logged with the first
                logs, value = {}, torch.zeros_like(value)
            yield LossPart(loss, logs, len(some), last, value)

    def can_split(self) -> bool:
        # several processes would wait for this one in the middle of their exchange of features
        return bool(self.micro_batch) and self.trainer.world_size == 1

    def memory_advice(self) -> str:
        """GradCache, or a smaller part of it."""
        if self.micro_batch:
            return f"set a --model.micro_batch below {self.micro_batch}"
        return (
            "a contrastive loss compares all pairs of a batch and is not the sum of those of its parts: set "
            "--model.micro_batch 32 (GradCache), which encodes a part at a time, or take a smaller --data.batch_size"
        )

    def _log_step(self, step: Step) -> None:
        super()._log_step(step)
        scale = self.model.logit_scale.detach()
        if not math.isfinite(float(scale)):
            raise ValueError(
                f"the temperature is broken: logit_scale={float(scale):.4g}. An earlier step had a gradient that was "
                "not finite; lower the learning rate, clip gradients, or go back to an earlier checkpoint"
            )

    def on_train_epoch_start(self) -> None:
        """Count texts that are cut anew."""
        self.train_cut.reset()

    def after_step(self) -> None:
        """Keep CLIP's temperature within bounds."""
        self.model.clamp_logit_scale()

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the features of the classes: the weights have changed."""
        self._class_features = None  # the weights have changed since

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch of captions or of labelled images, whichever loader it is from."""
        del batch_idx, dataloader_idx
        self.update_evaluation(self.take_batch(batch))

    def update_evaluation(self, batch: CaptionBatch | ImageBatch) -> None:
        """Add features of (B, C, H, W) images with their captions, or with labels (B,)."""
        if len(batch.images) == 0:
            return
        images = self.encode_read(self.read(batch.images)).float()
        if isinstance(batch, CaptionBatch):
            ids = self._ids(batch.texts, self.held_out_cut)
            texts = self.model.encode_text(ids, normalize=True)
            kept = batch.images, batch.texts, ids
            self.evaluation.add_captions(images, texts, batch.index, batch.text_image, *kept)
            return
        cosines = self.model.logit_scale.float().exp() * self._class_cosines(images)
        self.evaluation.add_labels(cosines, batch.labels, batch.images, batch.index)

    def _class_cosines(self, images: Tensor) -> Tensor:
        """(B, E) float32 of length one -> (B, K)."""
        if self._class_features is None:
            self._class_features = self._encode_classes()
        with torch.autocast(self.device.type, enabled=False):  # in 16 bits too many classes would be equally near
            return images @ self._class_features.T

    def on_predict_epoch_start(self) -> None:
        """Raises ValueError where there are no classes to name."""
        self._class_features = None
        if not self.zero_shot_classes:
            raise ValueError("predict names images by their classes, and there are none; give --data.zero_shot_path")

    def predict_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """(B, K) zero-shot probabilities."""
        del batch_idx
        images = self.encode_read(self.read(self.take_batch(batch).images)).float()
        return (self.model.logit_scale.float().exp() * self._class_cosines(images)).softmax(dim=1)

    def prediction_rows(self, outputs: Tensor) -> list[tuple[str, ...]]:
        """From (B, K) probabilities the likeliest class of each image."""
        best = zip(*(t.tolist() for t in outputs.max(dim=1)), strict=True)
        return [(self.zero_shot_classes[k], f"{p:.6f}") for p, k in best]

    def _encode_classes(self) -> Tensor:
        """(K, E): for each class the mean over the templates, of length one."""
        texts = [t.replace("{}", name) for name in self.zero_shot_classes for t in self.zero_shot_templates]
        ids = self.model.tokenizer(texts).to(self.device)
        rows = torch.cat([self.model.encode_text(part, normalize=True).float() for part in ids.split(TEXTS)])
        return F.normalize(rows.unflatten(0, (len(self.zero_shot_classes), -1)).mean(1), dim=-1)

    def finish_evaluation(self) -> dict[str, Tensor]:
        self.found = self.evaluation.found()
        values = self.evaluation.finish()
        counts = {"training": self.train_cut, "held-out": self.held_out_cut}
        for count in counts.values():
            count.update()
        self._cut = {part: count.compute().tolist() for part, count in counts.items()}
        with torch.inference_mode(False):
            self.held_out_cut.reset()
        if "recall_mean" not in values:
            self.monitor = "val/accuracy"  # there are labelled images only
        return values

    def begin_results(self) -> None:
        """Keep what is found for some, and what zero-shot answers are."""
        self.evaluation.keep_answers()

    def draw_results(self, folder: RunFolder) -> None:
        """A sheet of what captions find; and what was found and answered, for a page."""
        from visionzoo.viz.retrieval import retrieval_sheet

        if self.found:
            retrieval_sheet(self.found, folder.retrieval)
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.evaluation.zero_shot is not None:
            record_answers(
                folder.answers,
                self.evaluation.zero_shot,
                self.zero_shot_classes,
                stage="val",
                source=getattr(data, "zero_shot_source", None),
            )
        if self.evaluation.retrievals is not None and data is not None:
            write_gallery(
                folder.retrieval.with_suffix(".parquet"), *retrieval_gallery(self.evaluation.retrievals, data)
            )

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Recalls and zero-shot accuracy in percent."""
        parts = []
        for way, text in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
            if f"{way}_r1" in metrics:
                parts.append(
                    f"{text} R@1/5/10 " + "/".join(f"{100 * metrics[f'{way}_r{k}']:.1f}" for k in (1, 5, 10)) + " %"
                )
        if "accuracy" in metrics:
            before = f" ({100 * self.before['accuracy']:.2f} % before training)" if "accuracy" in self.before else ""
            parts.append(f"zero-shot accuracy {100 * metrics['accuracy']:.2f} %{before}")
        for part, (cut, texts) in self._cut.items():
            if cut:
                parts.append(
                    f"{cut} of {texts} {part} captions were longer than {self.model.context_length} tokens "
                    "and cut at the end"
                )
        return ", ".join(parts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also the scores before training, and what ``wise_ft`` mixes with, which may be gone when the run goes on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["before"], checkpoint["start"] = dict(self.before), self.start

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also the scores before training, and what ``wise_ft`` mixes with. Raises ValueError without it."""
        super().on_load_checkpoint(checkpoint)
        self.before = checkpoint.get("before", {})
        if self.wise_ft < 1:
            self.start = checkpoint.get("start")
            if self.start is None:
                raise ValueError(
                    f"wise_ft={self.wise_ft}: the run began without it, and has not kept what it began with; resume "
                    "without it"
                )

    def export_model(self) -> tuple[nn.Module, ModelConfig]:
        """The CLIP, interpolated with what it started from under ``wise_ft``."""
        model: Clip = self.model if self.start is None else interpolated(self.model, self.start, self.wise_ft)
        config = ModelConfig(
            task=self.task_name,
            architecture=model.architecture,
            preprocess=self.preprocess,
            labels=self.zero_shot_classes,
        )
        return model, config


def _build(
    name: str | None, backbone: str | None, weights: str | None, image_weights: str | None, options: dict[str, Any]
) -> tuple[Clip, str]:
    """The model, with weights, and a line that says how much of it was loaded."""
    if weights is not None and image_weights is not None:
        raise ValueError("give weights or image_weights, not both: a whole CLIP, or the image backbone alone")
    given = {k: v for k, v in options.items() if v is not None}
    config = run_config(weights)
    if weights is not None and (config is None or config.task == "clip"):
        if config is None:
            model = create_clip(name, backbone=backbone, weights=weights, **given)
            return model, f"{model.name} loaded from {weights}"
        _same_model(weights, config, name, backbone)
        model = create_clip(**{**config.architecture, **given})
        return model, str(load_weights(model, weights))
    source = image_weights if weights is None else weights
    if source is None:
        return create_clip(name, backbone=backbone, **given), ""
    if name is not None:
        model = create_clip(name, **given)
        own = ModelConfig(task="clip", architecture=model.architecture, preprocess=model.preprocess)
        trunk_options(source, {"backbone": trunk_name(own)})  # refuses a run of another backbone
    else:
        found = trunk_options(source, {"backbone": backbone, "image_size": options["image_size"]})
        model = create_clip(**{**given, **{k: v for k, v in found.items() if v is not None}})
    trunk = model.visual.trunk
    report = load_weights(trunk, source)
    return model, describe_handover(report, trunk)


def _no_start(wise_ft: float) -> str:
    return f"wise_ft={wise_ft} mixes with the CLIP that training starts from; name it by model.weights"


def _rebuilding(model: Clip) -> dict[str, Any]:
    """Options that rebuild a model without the weights it came from; none where the options cannot say it."""
    known = dict(model.architecture)
    if known.pop("in_chans", 3) != 3:
        return {}
    return {**known, "weights": None, "image_weights": None, "image_statistics": None}


def _same_model(weights: str, config: ModelConfig, name: str | None, backbone: str | None) -> None:
    for option, given in (("name", name), ("backbone", backbone)):
        if given is not None and given != config.architecture.get(option):
            raise ValueError(
                f"{weights} holds a CLIP whose {option} is {config.architecture.get(option)}, not {given}; "
                f"leave --model.{option} out"
            )
