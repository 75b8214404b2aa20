"""Train a promptable segmentation model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from visionzoo.losses.segmentation import mask_iou, prompt_loss
from visionzoo.metrics.mean_error import MeanAndError
from visionzoo.metrics.segmentation import clicks_to_iou
from visionzoo.models.bundle import ModelConfig
from visionzoo.models.sam import Sam
from visionzoo.models.sam.prompts import Prompts
from visionzoo.models.sam.text_prompts import TEMPLATE, TextPrompts
from visionzoo.runs import RunFolder
from visionzoo.runs.gallery import sheet_step, write_gallery
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.batches import describe
from visionzoo.tasks.engine.sheets import Sheets
from visionzoo.tasks.frozen_features import FrozenFeatures
from visionzoo.tasks.interface import LossPart
from visionzoo.tasks.lora import merged_copy, with_statistics
from visionzoo.tasks.prompting import Objects, PromptAnswers, best_masks, evaluate_prompts, training_rounds, upscale
from visionzoo.tasks.segment_batch import Part, each_image
from visionzoo.tasks.segment_model import EncoderMode, build_segmenter, choose_trained
from visionzoo.tasks.segment_pictures import ScoredObjects, choose_objects, masks_about, object_picture, sheet_about
from visionzoo.types import SegmentBatch
from visionzoo.viz.segmentation import SegmentRow
from visionzoo.weights.fingerprint import model_fingerprint

#: Clicks whose mean IoU is logged.
SHOWN_CLICKS = (1, 3, 5)
#: Parts of the loss.
LOGGED = ("total", "focal", "dice", "iou")


class SegmentTask(VisionTask):
    """Promptable segmentation, trained by simulated clicks and boxes (Segment Anything, arXiv 2304.02643).

    Args:
        fixed_images: whether training images are the same in every epoch, set from the data.
        backbone: vit_b, vit_l or vit_h for Meta's models, or a name from ``visionzoo models``.
        weights: a whole SAM to start from (Meta's file, or a run of this task); or a run of another task (mae,
            classify, clip), whose backbone becomes the image encoder.
        backbone_weights: instead of weights, those of the image encoder's backbone alone: a file, a folder, a run, or
            timm:tag.
        image_size: height and width of the model's input in pixels, one number or two; none for the backbone's own.
        embedding_stride: pixels per cell of the image embedding; masks come at a quarter of it. None for 16, or the
            coarsest of the backbone where that is finer. Small objects want 8 or 4.
        decoder_dim: width of neck, prompts and mask decoder, a multiple of 16; none for Meta's 256.
        conv_stem: whether a few convolutions read the pixels beside the backbone, for edges that its patches blur; none
            for what the weights were trained with.
        drop_path: stochastic-depth rate of the encoder's last block.
        ambiguous: whether one click may mean several things and has three answers; none for what the weights were
            trained with, or else true. Give false where it means one, as with cells.
        position_scale: factor for the frequencies that tell places apart, those of the weights too. Many small objects
            want higher ones than Meta's, a model from scratch does not: raise them for a second stage.
        encoder: frozen trains the rest on embeddings that are computed once where images are the same in every epoch;
            lora adds small adapters to the encoder; full trains everything.
        lora_rank: width of the adapters.
        lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank.
        embedding_cache: folder of the embeddings of a frozen encoder; none for the user's cache, off for no cache.
        clicks: corrective clicks in training.
        mask_rounds: rounds of training without a further click, in which the last mask alone is new.
        box_share: chance that an object is first shown by a box.
        eval_clicks: clicks in evaluation, at least 5.
        text_model: a CLIP (a run of train.py clip, or released weights with their configuration) whose text tower
            turns names into prompts; none for no text prompts.
        text_template: the text of a name; best like the captions that the CLIP was trained on.
        sheet_images: images on the sheet that is drawn after every epoch.
        grad_checkpointing: recompute the encoder's activations in the backward pass, to save memory.
    """

    task_name = "segment"
    monitor = "val/iou_1"
    prediction_columns = ("objects", *(f"iou_{k}" for k in SHOWN_CLICKS), "iou_box")
    settled = frozenset(
        {"backbone", "image_size", "embedding_stride", "decoder_dim", "ambiguous", "position_scale", "encoder"}
        | {"conv_stem", "lora_rank", "lora_alpha", "text_model"}
    )

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
        conv_stem: bool | None = None,
        drop_path: float = 0.0,
        ambiguous: bool | None = None,
        position_scale: float = 1.0,
        encoder: EncoderMode = "frozen",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        embedding_cache: str | None = None,
        clicks: int = 8,
        mask_rounds: int = 2,
        box_share: float = 0.5,
        eval_clicks: int = 5,
        text_model: str | None = None,
        text_template: str = TEMPLATE,
        sheet_images: int = 6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if encoder not in ("frozen", "lora", "full"):
            raise ValueError(f"encoder={encoder!r} is unknown; use frozen, lora or full")
        if clicks < 0 or mask_rounds < 0 or clicks + mask_rounds < 1:
            raise ValueError(
                f"clicks={clicks} and mask_rounds={mask_rounds} must be at least 0, and one of them above: a model "
                "that never gets its masks back cannot learn to correct them"
            )
        if eval_clicks < max(SHOWN_CLICKS) or sheet_images < 1:
            raise ValueError(
                f"eval_clicks={eval_clicks} must be at least {max(SHOWN_CLICKS)}, sheet_images={sheet_images} at "
                "least 1"
            )
        if not 0 <= box_share <= 1:
            raise ValueError(f"box_share={box_share} must be in [0, 1]")
        if self.layer_decay != 1:
            raise ValueError(f"layer_decay={self.layer_decay}: encoder and decoder have no one order of layers; use 1")
        self.encoder, self.clicks, self.mask_rounds, self.box_share = encoder, clicks, mask_rounds, box_share
        self.eval_clicks, self.sheet_images = eval_clicks, sheet_images

        self.text_prompts = None if text_model is None else TextPrompts.load(text_model, text_template)
        text_dim = None if self.text_prompts is None else self.text_prompts.width
        options = {
            "image_size": image_size, "embedding_stride": embedding_stride, "decoder_dim": decoder_dim,
            "conv_stem": conv_stem, "drop_path": drop_path, "ambiguous": ambiguous, "position_scale": position_scale,
        }  # fmt: skip
        model, self.opening_line = build_segmenter(backbone, weights, backbone_weights, options, text_dim)
        if encoder == "frozen" and not self.opening_line:
            self._say_more(
                "the frozen encoder has random weights: give --model.weights or --model.backbone_weights, or train it "
                "with --model.encoder full"
            )
        has_text = self.text_prompts is not None
        choose_trained(model, encoder, text=has_text, rank=lora_rank, alpha=lora_alpha)
        self.backbone_name: str = str(model.architecture["backbone"])
        known = dict(model.architecture)
        if known.pop("text_dim") == text_dim:  # else the weights brought text prompts along
            self.built = {**known, "weights": None, "backbone_weights": None, "position_scale": 1.0}
        self.fixed_images = fixed_images
        #: The encoder's maps where it and the images stay as they are.
        self.frozen: FrozenFeatures | None = None
        if encoder == "frozen" and fixed_images:
            self.frozen = FrozenFeatures(self._frozen_maps, self._encoder_identity, embedding_cache)
        self.use_model(model)
        if self.frozen is not None and self.frozen.folder is not None:
            self._say_more(f"embeddings of the frozen encoder are kept in {self.frozen.folder}")
        elif encoder == "frozen" and not fixed_images:
            self._say_more(
                "the frozen encoder runs in every step, since images vary; it would run once with "
                "--data.crop resize --data.hflip 0 --data.vflip 0 --data.color_jitter 0, or once for each of "
                "--data.fixed_views 8"
            )
        self._objects: ScoredObjects | None = None
        self.scored: Tensor | None = None  #: (N, 5), see :class:`ScoredObjects`, of an evaluation that was to keep it
        self.results = nn.ModuleDict({name: MeanMetric() for name in self._score_names()})
        #: Where a picture has several names: IoU by the right one less that by another of them.
        self.text_gain = MeanAndError()

    def _say_more(self, text: str) -> None:
        self.opening_line = "\n".join(line for line in (self.opening_line, text) if line)

    def use_model(self, model: nn.Module, in_chans: int | None = None) -> None:
        super().use_model(model, in_chans)
        assert isinstance(model, Sam)
        maps = model.image_encoder.maps
        self._maps = torch.compile(maps) if self.compile_model else maps
        if self.frozen is not None:
            self.frozen.forget()

    # ---- embeddings -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.frozen is not None:
            self.frozen.forget()  # weights may come from a checkpoint after this

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C, h, w) embeddings, with gradients for what is trained of the encoder."""
        join, normalized = self.model.image_encoder.join, self.normalize(images)
        if self.encoder != "frozen":
            return join(self._maps(normalized), normalized)
        return join(self._frozen_maps(images) if self.frozen is None else self.frozen(images), normalized)

    @torch.no_grad()
    def _frozen_maps(self, images: Tensor) -> list[Tensor]:
        return self._maps(self.normalize(images))

    def _encoder_identity(self) -> str:
        """Everything that an embedding depends on beside its image."""
        precision = str(self._trainer.precision) if self._trainer is not None else "32-true"
        # Of a neck, which trains, nothing but what it reads and the grid that it wants.
        read = self.model.embedding_size, getattr(self.model.image_encoder, "levels", None), self.compile_model
        return model_fingerprint(
            self.model.backbone, preprocess=self.preprocess, precision=precision, context=("maps", *read)
        )

    # ---- training ---------------------------------------------------------------------------------------------------

    def take_batch(self, batch: Any) -> SegmentBatch:
        """Raises ValueError for anything but a :class:`SegmentBatch`."""
        if not isinstance(batch, SegmentBatch):
            raise ValueError(f"need batches of visionzoo.types.SegmentBatch, got {describe(batch)}")
        return batch

    def conversation(self, batch: SegmentBatch) -> Part:
        """A training batch with the random numbers of what is asked about it."""
        return Part.of(
            batch,
            clicks=self.clicks,
            mask_rounds=self.mask_rounds,
            box_share=self.box_share,
            ambiguous=self.model.ambiguous,
            named=self.text_prompts is not None,
        )

    def loss_parts(self, batch: SegmentBatch, size: int | None) -> Iterator[LossPart]:
        """The loss of each round of clicks, part by part."""
        whole = self.conversation(batch)
        parts = [whole] if size is None or size >= len(batch.images) else whole.split(size)
        for part in parts:
            yield from self._rounds(part, part is parts[-1])

    def _rounds(self, part: Part, last: bool) -> Iterator[LossPart]:
        """The rounds of a conversation, each with a backward pass of its own, and then what they want of the encoder.

        The loss is the mean over all answers, of this part and the others.
        """
        images, embeddings = len(part.batch.images), self.embed(part.batch.images)
        learns = embeddings.requires_grad
        asked = embeddings.detach().requires_grad_(learns)
        rounds = 1 + self.clicks + self.mask_rounds + (self.text_prompts is not None)
        for number, (loss, logs) in enumerate(self.round_losses(part, asked), 1):
            yield LossPart(loss, logs, images, last=last and not learns and number == rounds)
        if learns:
            assert asked.grad is not None
            nothing = torch.zeros((), device=self.device)
            yield LossPart(embeddings, {}, images, last, value=nothing, gradient=asked.grad)

    def round_losses(self, part: Part, embeddings: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Loss and logs of each round, as shares of those of the batch."""
        batch = part.batch
        targets, valid = self._targets(batch.masks), self._valid(batch)
        for answers in training_rounds(
            self.model,
            embeddings,
            Objects.of(batch),
            clicks=self.clicks,
            mask_rounds=self.mask_rounds,
            box_share=self.box_share,
            draws=part.draws,
        ):
            found, shares = [], []
            for output, _, rows in answers:
                own = valid[batch.image_index[rows]]
                found.append(prompt_loss(output.masks, output.scores, targets[rows], valid=own))
                shares.append(len(rows) / part.answers)
            logs = {
                name: torch.stack([getattr(x, name) * share for x, share in zip(found, shares, strict=True)]).sum()
                for name in LOGGED
            }
            yield logs.pop("total"), logs
        if self.text_prompts is not None:
            text = self._text_loss(batch, embeddings, part.texts)
            yield text, {"text": text}

    def _targets(self, masks: Tensor) -> Tensor:
        """(N, H, W) bool -> (N, 1, h, w) shares in [0, 1] at the size of the masks that come out."""
        return F.interpolate(masks[:, None].float(), self.model.mask_size, mode="area")

    def _valid(self, batch: SegmentBatch) -> Tensor:
        """(B, 1, h, w) bool, at that size."""
        return F.interpolate(batch.valid[:, None].float(), self.model.mask_size, mode="nearest").bool()

    def _text_loss(self, batch: SegmentBatch, embeddings: Tensor, texts: int) -> Tensor:
        """The share of this part in the mean over all ``texts`` prompts."""
        assert self.text_prompts is not None
        prompts, masks = self.text_prompts.of_batch(batch)
        output = self.model.decode(embeddings, prompts, multimask=True)
        valid = self._valid(batch)[prompts.image_index]
        loss = prompt_loss(output.masks, output.scores, self._targets(masks), valid=valid)
        return loss.total * (len(masks) / max(1, texts))

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def _score_names(self) -> list[str]:
        names = [*(f"iou_{k}" for k in SHOWN_CLICKS), "iou_box", "clicks_85", "clicks_90"]
        return names if self.text_prompts is None else [*names, "iou_text"]

    def update_evaluation(self, batch: SegmentBatch) -> None:
        for _, own in each_image(batch):
            embedding = self.embed(own.images)
            answers = self._ask(own, embedding)
            if self._objects is not None:
                self._objects.add(int(own.index), answers)
            for k in SHOWN_CLICKS:
                self._add(f"iou_{k}", answers.click_ious[:, k - 1])
            self._add("iou_box", answers.box_iou)
            for share in (85, 90):
                self._add(f"clicks_{share}", clicks_to_iou(answers.click_ious, share / 100))
            if self.text_prompts is not None:
                prompts, masks = self.text_prompts.of_batch(own)
                if prompts.number:
                    found = self._by_text(embedding, prompts, own.valid)
                    right = mask_iou(found, masks)
                    self._add("iou_text", right)
                    if prompts.number > 1:
                        self.text_gain.update(right - mask_iou(found.roll(1, 0), masks))

    def _by_text(self, embedding: Tensor, prompts: Prompts, valid: Tensor) -> Tensor:
        """(N, H, W) bool, of one image."""
        height, width = valid.shape[-2:]
        return (upscale(best_masks(self.model.decode(embedding, prompts)), (height, width)) > 0) & valid

    def _ask(self, batch: SegmentBatch, embeddings: Tensor, keep_masks: bool = False) -> PromptAnswers:
        return evaluate_prompts(
            self.model, embeddings, Objects.of(batch), clicks=self.eval_clicks, keep_masks=keep_masks
        )

    def _add(self, name: str, values: Tensor) -> None:
        metric = self.results[name]
        assert isinstance(metric, MeanMetric)
        metric.update(values.float())

    def finish_evaluation(self) -> dict[str, Tensor]:
        self.scored, self._objects = None if self._objects is None else self._objects.finish(), None
        values = {}
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        for name, metric in self.results.items():
            assert isinstance(metric, MeanMetric)
            if several or metric.update_called:  # a rank without objects must take part in the sum all the same
                value = metric.compute()
                if torch.isfinite(value):  # there was something to score on some rank
                    values[name] = value
            with torch.inference_mode(False):  # or its state could never be changed by a training run that follows
                metric.reset()
        if self.text_prompts is not None and (several or self.text_gain.update_called):
            gain, error = self.text_gain.compute()
            if torch.isfinite(error):
                values |= {"text_gain": gain, "text_gain_error": error}
            with torch.inference_mode(False):
                self.text_gain.reset()
        return values

    def summary(self, metrics: Mapping[str, float]) -> str:
        if "iou_1" not in metrics:
            return "no objects to score"
        ious = "/".join(f"{metrics[f'iou_{k}']:.3f}" for k in SHOWN_CLICKS)
        after = "/".join(map(str, SHOWN_CLICKS))
        text = f", by name {metrics['iou_text']:.3f}" if "iou_text" in metrics else ""
        if "text_gain" in metrics:
            gain, error = metrics["text_gain"], metrics["text_gain_error"]
            text += f" ({gain:+.3f} ± {error:.3f} against another name of the same picture)"
        return (
            f"mean IoU {ious} after {after} clicks, {metrics['iou_box']:.3f} from a box{text}; "
            f"{metrics['clicks_85']:.2f} clicks to 85 % and {metrics['clicks_90']:.2f} to 90 %, "
            f"of {self.eval_clicks} at most"
        )

    # ---- results ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict_step(self, batch: SegmentBatch, batch_idx: int) -> list[tuple[str, ...]]:
        """A row for each image: its objects, and how well they are found."""
        rows: list[tuple[str, ...]] = [("0", "", "", "", "")] * len(batch.images)
        for b, own in each_image(self.take_batch(batch)):
            answers = self._ask(own, self.embed(own.images))
            ious = [answers.click_ious[:, k - 1] for k in SHOWN_CLICKS]
            rows[b] = (str(len(own.masks)), *(f"{x.mean():.6f}" for x in (*ious, answers.box_iou)))
        return rows

    def prediction_rows(self, outputs: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """As ``predict_step`` wrote them."""
        return outputs

    def run_callbacks(self) -> list[Callback]:
        """A sheet of held-out images after every epoch."""
        return [Sheets(0, self.sheet_images, every_epoch=True)]

    @torch.no_grad()
    def draw_sheet(self, batch: SegmentBatch, out: Path, title: str = "") -> Path:
        """Draw the largest object of each image: the truth, after one and three clicks, from a box, and by its name.

        Of a sheet while it learns the pictures are kept one by one as well, for a page.
        """
        from visionzoo.viz.segmentation import segmentation_sheet

        found = []
        for _, own in each_image(batch.to(self.device)):
            largest = int(own.masks.flatten(1).sum(1).argmax())
            found.append((int(own.index), self._row(own, largest)))
        if (step := sheet_step(out)) >= 0:
            kept = [object_picture("", row, position) for position, row in found]
            write_gallery(out.with_suffix(".parquet"), kept, sheet_about(step))
        return segmentation_sheet([row for _, row in found], out, title=title)

    def _row(self, image: SegmentBatch, number: int) -> SegmentRow:
        """One object of an image, its prompts, and the masks that came of it."""
        chosen, name = torch.tensor([number], device=image.masks.device), image.names[number]
        own = image._replace(masks=image.masks[chosen], image_index=image.image_index[chosen], names=(name,))
        embedding = self.embed(own.images)
        answers = self._ask(own, embedding, keep_masks=True)
        assert answers.click_masks is not None
        return SegmentRow(
            image=own.images[0].permute(1, 2, 0).cpu().numpy(),
            truth=own.masks[0].cpu().numpy(),
            clicks=list(answers.click_masks[0].cpu().numpy()),
            ious=answers.click_ious[0].tolist(),
            points=answers.points[0].tolist(),
            labels=answers.labels[0].tolist(),
            box=answers.boxes[0].tolist(),
            by_box=answers.box_masks[0].cpu().numpy(),
            box_iou=float(answers.box_iou[0]),
            name=name,
            by_name=self._named_mask(image, embedding, name),
        )

    def _named_mask(self, batch: SegmentBatch, embedding: Tensor, name: str) -> tuple[np.ndarray, float] | None:
        """(H, W) bool of what one image's objects of this name are taken for, and the IoU with them."""
        if self.text_prompts is None or not name:
            return None
        same = torch.tensor([other == name for other in batch.names], device=batch.masks.device)
        prompts, truth = self.text_prompts.of_batch(
            batch._replace(
                masks=batch.masks[same], image_index=batch.image_index[same], names=(name,) * int(same.sum())
            )
        )
        mask = self._by_text(embedding, prompts, batch.valid)
        return mask[0].cpu().numpy(), float(mask_iou(mask, truth)[0])

    def begin_results(self) -> None:
        """Keep how well each object is found."""
        self._objects = ScoredObjects()

    def draw_results(self, folder: RunFolder) -> None:
        """A sheet of held-out images with clicks and masks; and the best, middle and worst objects, for a page."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.draw_sheet(data.sample_batch(self.sheet_images), folder.masks_sheet, title="Held-out images")
        source = data.test_source if self.trainer.state.fn == "test" else data.val_source
        if self.scored is None or source is None:
            return
        dataset, collate = data.evaluation_set(source)
        kept = []
        with torch.no_grad():
            for group, places in choose_objects(self.scored).items():
                for position, number in places:
                    _, image = next(each_image(collate([dataset[(0, position)]]).to(self.device)))
                    kept.append(object_picture(group, self._row(image, number), position))
        write_gallery(folder.masks_sheet.with_suffix(".parquet"), kept, masks_about(self.scored))

    def export_model(self) -> tuple[nn.Module, ModelConfig]:
        """The SAM, adapters merged, and which CLIP its text prompts are from."""
        model = merged_copy(self.model) if self.encoder == "lora" else self.model
        assert isinstance(model, Sam)
        spoken = None if self.text_prompts is None else self.text_prompts.origin()
        config = ModelConfig(
            task=self.task_name, architecture=model.architecture, preprocess=self.preprocess, text_prompts=spoken
        )
        return model, config

    def use_exported(self, folder: RunFolder) -> None:
        """Adapters are merged in it."""
        super().use_exported(folder)
        if self.encoder != "frozen":
            self.encoder = "full"  # adapters are merged

    def frozen_modules(self) -> list[nn.Module]:
        """The encoder, where it does not train; what has running statistics in it, beside adapters."""
        trunk = list(self.model.backbone.modules())
        return {"frozen": trunk, "lora": with_statistics(trunk)}.get(self.encoder, [])
