"""Train a promptable segmentation model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from visionzoo.losses.segmentation import prompt_loss
from visionzoo.metrics.segmentation import clicks_to_iou, mask_iou
from visionzoo.models.bundle import ModelConfig
from visionzoo.models.sam import Sam, create_sam
from visionzoo.models.sam.build import SAM_BACKBONES
from visionzoo.models.sam.prompts import Prompts
from visionzoo.runs import RunFolder
from visionzoo.runs.cache import cache_folder
from visionzoo.tasks.base import TrainStep, VisionTask
from visionzoo.tasks.embedding_cache import EmbeddingCache
from visionzoo.tasks.handover import describe_handover, run_config, trunk_options
from visionzoo.tasks.lora import add_adapters, merged_copy
from visionzoo.tasks.prompting import Answers, Objects, best_masks, evaluate_prompts, training_rounds, upscale
from visionzoo.tasks.text_prompts import TextPrompts
from visionzoo.types import SegmentBatch
from visionzoo.weights import load_weights
from visionzoo.weights.fingerprint import weights_hash

#: Prompts, mask decoder and any neck that was built here: what is left when the encoder is frozen.
LEARNING = ("prompt_encoder.", "mask_decoder.", "image_encoder.neck.")
#: Clicks whose mean IoU is logged.
SHOWN_CLICKS = (1, 3, 5)


class PromptSegment(VisionTask):
    """Promptable segmentation, trained by simulated clicks and boxes (Segment Anything, arXiv 2304.02643).

    Args:
        fixed_images: whether training images are the same in every epoch, set from the data.
        backbone: vit_b, vit_l or vit_h for Meta's models, or a name from ``visionzoo models``.
        weights: a whole SAM to start from (Meta's file, or a run of this task); or a run of another task (mae,
            classify, clip), whose backbone becomes the image encoder.
        backbone_weights: weights of the image encoder's backbone alone: a file, a folder, a run, or timm:tag.
        image_size: height and width of the model's input in pixels, one number or two; none for the backbone's own.
        embedding_stride: pixels per cell of the image embedding; masks come at a quarter of it. None for 16, or the
            coarsest of the backbone where that is finer. Small objects want 8 or 4.
        decoder_dim: width of neck, prompts and mask decoder, a multiple of 16; none for Meta's 256.
        drop_path: stochastic-depth rate of the encoder's last block.
        encoder: frozen trains the rest on embeddings that are computed once where images are the same in every epoch;
            lora adds small adapters to the encoder; full trains everything.
        lora_rank: width of the adapters.
        lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank.
        embedding_cache: folder of the embeddings of a frozen encoder; none for the user's cache, off for no cache.
        clicks: corrective clicks in training.
        mask_rounds: rounds in which only the last mask is given.
        box_share: chance that an object is first shown by a box.
        eval_clicks: clicks in evaluation, at least 5.
        text_model: a CLIP (a run of train.py clip, or released weights with their configuration) whose text tower
            turns names into prompts; none for no text prompts.
        sheet_images: images on the sheet that is drawn after every epoch.
    """

    task_name = "segment"
    monitor = "val/iou_1"
    sheet_every_epoch = True

    model: Sam

    def __init__(
        self,
        *,
        fixed_images: bool = False,
        backbone: str | None = None,
        weights: str | None = None,
        backbone_weights: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        embedding_stride: int | None = None,
        decoder_dim: int | None = None,
        drop_path: float = 0.0,
        encoder: Literal["frozen", "lora", "full"] = "frozen",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        embedding_cache: str | None = None,
        clicks: int = 8,
        mask_rounds: int = 2,
        box_share: float = 0.5,
        eval_clicks: int = 5,
        text_model: str | None = None,
        sheet_images: int = 6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if encoder not in ("frozen", "lora", "full"):
            raise ValueError(f"encoder={encoder!r} is unknown; use frozen, lora or full")
        if clicks < 0 or mask_rounds < 0 or eval_clicks < max(SHOWN_CLICKS) or sheet_images < 1:
            raise ValueError(
                f"clicks={clicks} and mask_rounds={mask_rounds} must be at least 0, eval_clicks={eval_clicks} at "
                f"least {max(SHOWN_CLICKS)}, sheet_images={sheet_images} at least 1"
            )
        if not 0 <= box_share <= 1:
            raise ValueError(f"box_share={box_share} must be in [0, 1]")
        if self.layer_decay != 1:
            raise ValueError(f"layer_decay={self.layer_decay}: encoder and decoder have no one order of layers; use 1")
        self.encoder, self.clicks, self.mask_rounds, self.box_share = encoder, clicks, mask_rounds, box_share
        self.eval_clicks, self.sheet_images = eval_clicks, sheet_images

        self.text_prompts = None if text_model is None else TextPrompts.load(text_model)
        text_dim = None if self.text_prompts is None else self.text_prompts.width
        options: dict[str, Any] = {"image_size": image_size, "embedding_stride": embedding_stride, "text_dim": text_dim}
        options |= {"decoder_dim": decoder_dim, "drop_path": drop_path}
        model, self.opening_line = _build(backbone, weights, backbone_weights, options)
        if encoder != "full":
            for name, parameter in model.named_parameters():
                if not name.startswith(LEARNING):
                    parameter.requires_grad_(False)
        if encoder == "lora":
            add_adapters(model, rank=lora_rank, alpha=lora_alpha, keep=LEARNING)
        self.backbone_name: str = str(model.architecture["backbone"])
        self.use_model(model, model.preprocess)
        self.cache: EmbeddingCache | None = None
        if encoder == "frozen" and embedding_cache != "off":
            if fixed_images:
                folder = cache_folder("embeddings") if embedding_cache is None else Path(embedding_cache)
                trunk = model.image_encoder
                described = f"{weights_hash(trunk)} {model.preprocess.to_dict()} {model.embedding_size}"
                self.cache = EmbeddingCache(folder, hashlib.blake2b(described.encode(), digest_size=16).hexdigest())
                self._say_more(f"embeddings of the frozen encoder are kept in {self.cache.folder}")
            else:
                self._say_more(
                    "the frozen encoder runs in every step, since images vary; it would run once with "
                    "--data.crop resize --data.hflip 0 --data.vflip 0 --data.color_jitter 0"
                )
        self.results = nn.ModuleDict({name: MeanMetric() for name in self._score_names()})

    def _say_more(self, text: str) -> None:
        self.opening_line = "\n".join(line for line in (self.opening_line, text) if line)

    # ---- embeddings -------------------------------------------------------------------------------------------------

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C, h, w) embeddings, with gradients for what is trained of the encoder."""
        encoder = self.model.image_encoder
        if self.encoder != "frozen":
            return encoder(self.normalize(images))
        if self.cache is None:
            maps = self._frozen_maps(images)
        else:
            maps = self.cache.get(images, self._frozen_maps)
        return encoder.join(maps)

    @torch.no_grad()
    def _frozen_maps(self, images: Tensor) -> list[Tensor]:
        return self.model.image_encoder.maps(self.normalize(images))

    # ---- training ---------------------------------------------------------------------------------------------------

    def train_loss(self, batch: SegmentBatch) -> TrainStep:
        embeddings = self.embed(batch.images)
        objects = Objects(batch.masks, batch.image_index)
        targets, valid = self._targets(batch.masks), self._valid(batch)[:, None]
        valid = F.interpolate(valid.float(), self.model.mask_size, mode="nearest").bool()
        rounds = training_rounds(
            self.model, embeddings, objects, clicks=self.clicks, mask_rounds=self.mask_rounds, box_share=self.box_share
        )
        losses = [prompt_loss(r.output.masks, r.output.scores, targets, valid=valid) for r in rounds]
        total = torch.stack([loss.total for loss in losses]).mean()
        logs = {name: torch.stack([getattr(x, name) for x in losses]).mean() for name in ("focal", "dice", "iou")}
        if self.text_prompts is not None:
            text = self._text_loss(batch, embeddings)
            total, logs = total + text, {**logs, "text": text}
        return TrainStep(total, logs, len(batch.images))

    def _targets(self, masks: Tensor) -> Tensor:
        """(N, H, W) bool -> (N, 1, h, w) shares in [0, 1] at the size of the masks that come out."""
        return F.interpolate(masks[:, None].float(), self.model.mask_size, mode="area")

    def _valid(self, batch: SegmentBatch) -> Tensor:
        return batch.valid[batch.image_index]

    def _text_loss(self, batch: SegmentBatch, embeddings: Tensor) -> Tensor:
        assert self.text_prompts is not None
        named = self.text_prompts.of_batch(batch)
        if named is None:
            return embeddings.sum() * 0
        prompts, masks = named
        output = self.model.decode(embeddings, prompts, multimask=True)
        return prompt_loss(output.masks, output.scores, self._targets(masks)).total

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def _score_names(self) -> list[str]:
        names = [*(f"iou_{k}" for k in SHOWN_CLICKS), "iou_box", "clicks_85", "clicks_90"]
        return names if self.text_prompts is None else [*names, "iou_text"]

    def update_evaluation(self, batch: SegmentBatch) -> None:
        if len(batch.masks) == 0:
            return
        embeddings = self.embed(batch.images)
        answers = self._ask(batch, embeddings)
        for k in SHOWN_CLICKS:
            self._add(f"iou_{k}", answers.click_ious[:, k - 1])
        self._add("iou_box", answers.box_iou)
        for share in (85, 90):
            self._add(f"clicks_{share}", clicks_to_iou(answers.click_ious, share / 100))
        named = None if self.text_prompts is None else self.text_prompts.of_batch(batch)
        if named is not None:
            prompts, masks = named
            self._add("iou_text", mask_iou(self._by_text(embeddings, prompts, masks.shape[-2:]), masks))

    def _by_text(self, embeddings: Tensor, prompts: Prompts, size: torch.Size) -> Tensor:
        return upscale(best_masks(self.model.decode(embeddings, prompts)), (size[0], size[1])) > 0

    def _ask(self, batch: SegmentBatch, embeddings: Tensor, keep_masks: bool = False) -> Answers:
        objects = Objects(batch.masks, batch.image_index)
        return evaluate_prompts(
            self.model, embeddings, objects, self._valid(batch), clicks=self.eval_clicks, keep_masks=keep_masks
        )

    def _add(self, name: str, values: Tensor) -> None:
        metric = self.results[name]
        assert isinstance(metric, MeanMetric)
        metric.update(values.float())

    def finish_evaluation(self) -> dict[str, Tensor]:
        values = {}
        for name, metric in self.results.items():
            assert isinstance(metric, MeanMetric)
            if metric.update_called or self.trainer.world_size > 1:
                values[name] = metric.compute()
            with torch.inference_mode(False):  # or its state could never be changed by a training run that follows
                metric.reset()
        return values

    def summary(self, metrics: Mapping[str, float]) -> str:
        if "iou_1" not in metrics:
            return "no objects to score"
        ious = "/".join(f"{metrics[f'iou_{k}']:.3f}" for k in SHOWN_CLICKS)
        after = "/".join(map(str, SHOWN_CLICKS))
        text = f", by name {metrics['iou_text']:.3f}" if "iou_text" in metrics else ""
        return (
            f"mean IoU {ious} after {after} clicks, {metrics['iou_box']:.3f} from a box{text}; "
            f"{metrics['clicks_85']:.2f} clicks to 85 % and {metrics['clicks_90']:.2f} to 90 % (of {self.eval_clicks})"
        )

    # ---- results ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw_sheet(self, batch: SegmentBatch, out: Path, title: str = "") -> Path:
        """Draw the largest object of each image: the truth, after one and three clicks, and from a box."""
        from visionzoo.viz.segmentation import SegmentRow, segmentation_sheet

        device = self.device
        batch = batch._replace(
            images=batch.images.to(device),
            masks=batch.masks.to(device),
            image_index=batch.image_index.to(device),
            valid=batch.valid.to(device),
        )
        chosen = _largest(batch)
        batch = batch._replace(masks=batch.masks[chosen], image_index=batch.image_index[chosen])
        answers = self._ask(batch, self.embed(batch.images), keep_masks=True)
        rows = []
        for i, b in enumerate(batch.image_index.tolist()):
            rows.append(
                SegmentRow(
                    image=batch.images[b].permute(1, 2, 0).cpu().numpy(),
                    truth=batch.masks[i].cpu().numpy(),
                    clicks=[m[i].cpu().numpy() for m in answers.click_masks],
                    ious=answers.click_ious[i].tolist(),
                    points=answers.points[i].tolist(),
                    labels=answers.labels[i].tolist(),
                    box=answers.boxes[i].tolist(),
                    by_box=answers.box_masks[i].cpu().numpy(),
                    box_iou=float(answers.box_iou[i]),
                )
            )
        return segmentation_sheet(rows, out, title=title)

    def draw_results(self, folder: RunFolder) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        batch = data.sample_batch(self.sheet_images)
        if len(batch.masks):
            self.draw_sheet(batch, folder.masks_sheet, title="Held-out images")

    def export_model(self) -> tuple[nn.Module, ModelConfig]:
        model = merged_copy(self.model) if self.encoder == "lora" else self.model
        assert isinstance(model, Sam)
        return model, ModelConfig(task=self.task_name, architecture=model.architecture, preprocess=self.preprocess)

    def use_exported(self, folder: RunFolder) -> None:
        super().use_exported(folder)
        if self.encoder != "frozen":
            self.encoder = "full"  # adapters are merged

    def frozen_modules(self) -> list[nn.Module]:
        if self.encoder != "frozen":
            return []
        trunk = self.model.backbone
        return list(trunk.modules())


def _largest(batch: SegmentBatch) -> Tensor:
    """The place of each image's largest object among all of them."""
    areas = batch.masks.flatten(1).sum(1)
    found = []
    for b in batch.image_index.unique().tolist():
        own = (batch.image_index == b).nonzero()[:, 0]
        found.append(own[areas[own].argmax()])
    return torch.stack(found)


def _build(
    backbone: str | None, weights: str | None, backbone_weights: str | None, options: dict[str, Any]
) -> tuple[Sam, str]:
    """The model, with weights, and a line that says how much of it was loaded."""
    config = run_config(weights)
    if config is not None and config.task != "segment":  # a run whose backbone becomes the image encoder
        weights, backbone_weights, config = None, weights, None
    given = {k: v for k, v in options.items() if v is not None}
    if weights is not None:
        known = {} if config is None else config.architecture
        if backbone is not None and known.get("backbone", backbone) != backbone:
            raise ValueError(
                f"{weights} holds a SAM of {known['backbone']}, not of {backbone}; leave --model.backbone out"
            )
        model = create_sam(**{"backbone": backbone or "vit_b", **known, **given})
        return model, str(load_weights(model, weights))
    if backbone_weights is not None and backbone not in SAM_BACKBONES:
        found = trunk_options(backbone_weights, {"backbone": backbone, "image_size": options["image_size"]})
        backbone = found["backbone"]
        given |= {"image_size": found["image_size"]} if found["image_size"] is not None else {}
    if backbone is None:
        raise ValueError("model.backbone is not given: vit_b, vit_l, vit_h, or a name from `visionzoo models`")
    model = create_sam(backbone, **given)
    if backbone_weights is None:
        return model, ""
    trunk = model.backbone
    return model, describe_handover(load_weights(trunk, backbone_weights), trunk)
