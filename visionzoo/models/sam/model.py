"""The whole model: an image is encoded once, and then asked about as often as one likes.

Legend: B images, N prompts, (H, W) pixels of the model's input, C width, (h, w) embedding grid, M masks per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.layer_groups import inside
from visionzoo.models.sam.encoder import ImageEncoderViT, NeckedEncoder
from visionzoo.models.sam.mask_decoder import Decoded, MaskDecoder
from visionzoo.models.sam.prompt_encoder import PromptEncoder, PromptTokens
from visionzoo.models.sam.prompts import Prompts, join, may_look
from visionzoo.models.sam.transformer import Cells
from visionzoo.types import Preprocess


class SamPreprocess(Preprocess):
    """How SAM wants its images: the spec, and what Meta's programs call under the name ``preprocess``."""

    @classmethod
    def of(cls, spec: Preprocess) -> SamPreprocess:
        """The same spec."""
        return cls(**{f.name: getattr(spec, f.name) for f in fields(Preprocess)})

    @classmethod
    def around(cls, spec: Preprocess, image_size: tuple[int, int]) -> SamPreprocess:
        """How a SAM wants its images whose backbone wants them as ``spec`` says: the longer side resized, padded at the
        right and bottom with the mean colour. What is padded there already stays as it is but for its size."""
        if spec.pad_anchor == "top_left":
            return cls.of(replace(spec, image_size=image_size))
        sides: dict[str, Any] = {"resize_mode": "longest", "crop_pct": 1.0, "pad_anchor": "top_left"}
        colour = tuple(round(spec.value_scale * m) for m in spec.mean)
        return cls.of(replace(spec, image_size=image_size, interpolation="bilinear", pad_value=colour, **sides))

    def __call__(self, x: Tensor) -> Tensor:
        """Resized images to the model's input: (..., 3, H', W') in 0..255 -> (..., 3, H, W) float.

        Normalised, then padded with zeros at the right and bottom, which is the mean colour.

        Raises:
            ValueError: for an image that is larger than the model's input.
        """
        (h, w), (have_h, have_w) = self.image_size, x.shape[-2:]
        if have_h > h or have_w > w:
            raise ValueError(f"an image of {have_h}x{have_w} does not fit this model's {h}x{w}; resize it first")
        mean, std = (
            torch.tensor([v * self.value_scale for v in values], dtype=torch.float32, device=x.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return F.pad((x - mean) / std, (0, w - have_w, 0, h - have_h))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocess) and self.to_dict() == other.to_dict()

    __hash__ = Preprocess.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> SamPreprocess:
        return self  # it never changes, and a copied model is called as the original is

    def __reduce__(self) -> tuple[Any, ...]:
        # Loaders' processes import no models; there it is the plain spec.
        return Preprocess.from_dict, (self.to_dict(),)


class SamContext(NamedTuple):
    """Everything about one image that its prompts share; made once by :meth:`Sam.context`, without gradients."""

    embedding: Tensor  #: (1, C, h, w)
    cells: Cells


class SamOutput(NamedTuple):
    """The answer to N prompts."""

    masks: Tensor  #: (N, M, 4 h, 4 w) logits, for the whole padded input
    scores: Tensor  #: (N, M), predicted IoU with the object


class Sam(nn.Module):
    """Segment Anything. Made by :func:`visionzoo.create_sam`.

    Has what Meta's programs ask of theirs, so that ``segment_anything``'s predictor and mask generator run on it.
    ``preprocess`` is the spec of the images, as everywhere here, and calling it is Meta's method of that name.
    """

    weights_family = "sam"
    head_prefixes: tuple[str, ...] = ()
    num_classes = 0
    in_chans = 3
    mask_threshold: float = 0.0
    #: Whether one click may mean several things.
    ambiguous: bool = True
    image_format: str = "RGB"

    def __init__(
        self,
        image_encoder: ImageEncoderViT | NeckedEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.name = "SAM"
        self.image_size = image_encoder.image_size
        self.architecture: dict[str, Any] = {}
        self.stem_key = self.backbone_prefix + self.backbone.stem_key

    @property
    def preprocess(self) -> SamPreprocess:
        """How images become the model's input: it follows the backbone's, whatever weights that gets."""
        return SamPreprocess.around(self.backbone.preprocess, self.image_size)

    @preprocess.setter
    def preprocess(self, spec: Preprocess) -> None:
        self.backbone.preprocess = spec

    @property
    def pixel_mean(self) -> Tensor:
        """(C, 1, 1), in 0..255."""
        return self._pixel(self.preprocess.mean)

    @property
    def pixel_std(self) -> Tensor:
        """(C, 1, 1), in 0..255."""
        return self._pixel(self.preprocess.std)

    def _pixel(self, values: Sequence[float]) -> Tensor:
        return torch.tensor([v * self.preprocess.value_scale for v in values], device=self.device).view(-1, 1, 1)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    @property
    def backbone(self) -> Backbone:
        """The image encoder without the neck that it may have got here."""
        encoder = self.image_encoder
        return encoder.trunk if isinstance(encoder, NeckedEncoder) else encoder

    @property
    def backbone_prefix(self) -> str:
        """What the keys of :attr:`backbone` start with."""
        return "image_encoder.trunk." if isinstance(self.image_encoder, NeckedEncoder) else "image_encoder."

    @property
    def embedding_size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.prompt_encoder.image_embedding_size

    @property
    def decoder_dim(self) -> int:
        """C."""
        return self.mask_decoder.transformer_dim

    @property
    def mask_size(self) -> tuple[int, int]:
        """(4 h, 4 w), of masks as they come and as prompts."""
        return self.prompt_encoder.mask_input_size

    # For training and for many images at once.

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised and padded images -> (B, C, h, w) embeddings."""
        return self.image_encoder(images)

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool | None = True) -> SamOutput:
        """Answer N prompts about B images.

        Args:
            embeddings: (B, C, h, w).
            prompts: their ``image_index`` says which image each is about.
            multimask: True for the three masks of an ambiguous prompt, False for the one of a clear prompt, None for
                all four, that one first.

        Raises:
            ValueError: for embeddings or masks of another size than this model's, an image that is not there, or
                text prompts that it cannot take.
        """
        grid = (embeddings.shape[2], embeddings.shape[3])
        if grid != self.embedding_size:
            raise ValueError(f"embeddings of {grid[0]}x{grid[1]} cells are not of this model ({self.embedding_size})")
        index = prompts.image_index
        if index is not None and may_look(index):
            most = max(index.tolist(), default=0)
            if not 0 <= most < embeddings.shape[0]:
                raise ValueError(f"prompts about image {most} of {embeddings.shape[0]}")
        tokens = self.prompt_encoder.encode(prompts)
        if embeddings.shape[0] > 1:
            embeddings = embeddings[torch.zeros(prompts.number, dtype=torch.int64) if index is None else index]
        cells = self.mask_decoder.cells(embeddings, self.prompt_encoder.get_dense_pe(), tokens.dense)
        return self._answer(cells, tokens, multimask)

    def _answer(self, cells: Cells, tokens: PromptTokens, multimask: bool | None) -> SamOutput:
        decoded = self._decode(cells, tokens)
        return SamOutput(self.mask_decoder.masks(decoded, multimask), self.mask_decoder.scores(decoded, multimask))

    def _decode(self, cells: Cells, tokens: PromptTokens) -> Decoded:
        return self.mask_decoder.decode(cells, self.embedding_size, tokens.sparse, tokens.valid)

    # For one image and many questions.

    @torch.no_grad()
    def context(self, embedding: Tensor) -> SamContext:
        """What all prompts of one image share, computed once: embedding (1, C, h, w)."""
        dense = self.prompt_encoder.encode(Prompts.of().to(self.device)).dense
        return SamContext(embedding, self.mask_decoder.cells(embedding, self.prompt_encoder.get_dense_pe(), dense))

    @torch.no_grad()
    def ask(self, context: SamContext, prompts: Prompts, multimask: bool | None = True) -> SamOutput:
        """:meth:`decode` for one image whose :meth:`context` is at hand."""
        if prompts.masks is not None:
            return self.decode(context.embedding, prompts._replace(image_index=None), multimask)
        return self._answer(context.cells, self.prompt_encoder.encode(prompts), multimask)

    @torch.no_grad()
    def ask_scores(
        self, context: SamContext, prompts: Prompts, multimask: bool | None = True
    ) -> tuple[Decoded, Tensor]:
        """:meth:`ask` up to the scores (N, M): masks of what is good enough come from ``mask_decoder.masks``."""
        decoded = self._decode(context.cells, self.prompt_encoder.encode(prompts))
        return decoded, self.mask_decoder.scores(decoded, multimask)

    # Meta's methods.

    @torch.no_grad()
    def forward(self, batched_input: Sequence[dict[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Masks for a list of images, each with its own prompts; all of them are decoded together.

        Args:
            batched_input: for each image a dictionary with ``image`` (3, H', W') in 0..255, resized, and
                ``original_size`` (height, width); and any of ``point_coords`` (N, P, 2) with ``point_labels`` (N, P),
                ``boxes`` (N, 4), ``mask_inputs`` (N, 1, 4 h, 4 w), in pixels of the resized image.
            multimask_output: three masks for each prompt, or one.

        Returns:
            for each image ``masks`` (N, M, height, width) bool, ``iou_predictions`` (N, M) and ``low_res_logits``
            (N, M, 4 h, 4 w).
        """
        embeddings = self.encode(torch.stack([self.preprocess(item["image"]) for item in batched_input]))
        keys = ("point_coords", "point_labels", "boxes", "mask_inputs")
        parts = [Prompts.of(*(item.get(k) for k in keys), image_index=i) for i, item in enumerate(batched_input)]
        output = self.decode(embeddings, join(parts).to(self.device), multimask_output)
        counts = [p.number for p in parts]
        answers = []
        for item, masks, scores in zip(
            batched_input, output.masks.split(counts), output.scores.split(counts), strict=True
        ):
            full = self.postprocess_masks(masks, tuple(item["image"].shape[-2:]), item["original_size"])
            answers.append({"masks": full > self.mask_threshold, "iou_predictions": scores, "low_res_logits": masks})
        return answers

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]) -> Tensor:
        """Masks as they come, to the pixels of the image: (N, M, 4 h, 4 w) -> (N, M, height, width).

        Args:
            masks: logits.
            input_size: (H', W') of the resized image, before it was padded.
            original_size: (height, width).
        """
        return full_size_masks(masks, self.image_size, input_size, original_size)

    # What training and weights need to know.

    def add_text_prompts(self, text_dim: int) -> None:
        """Take text embeddings of this width as prompts from now on; how to read them is still to be learned."""
        self.prompt_encoder.add_text(text_dim)
        self.architecture = {**self.architecture, "text_dim": text_dim}

    def group_matcher(self, coarse: bool = False) -> Any:
        """timm's description of layer groups: the backbone's, and everything behind it as one."""
        return inside(self.backbone.group_matcher(coarse), self.backbone_prefix)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed: position tables and learned tokens."""
        trunk, prefix = self.backbone, self.backbone_prefix
        tokens = [n for n, m in self.named_modules() if isinstance(m, nn.Embedding)]
        return {prefix + n for n in trunk.no_weight_decay()} | {f"{n}.weight" for n in tokens}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass, to save memory."""
        self.backbone.set_grad_checkpointing(enable)

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample the encoder's tables to this model's size; see :meth:`Backbone.adapt_state_dict`."""
        trunk, prefix = self.backbone, self.backbone_prefix
        own, notes = trunk.adapt_state_dict(
            {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}, stored_size
        )
        rest = {k: v for k, v in state_dict.items() if not k.startswith(prefix)}
        return rest | {prefix + k: v for k, v in own.items()}, notes


def full_size_masks(
    masks: Tensor, image_size: tuple[int, int], input_size: tuple[int, ...], original_size: tuple[int, ...]
) -> Tensor:
    """Masks (N, M, 4 h, 4 w) of a model whose input is ``image_size``; see :meth:`Sam.postprocess_masks`."""
    masks = F.interpolate(masks.float(), image_size, mode="bilinear", align_corners=False)
    masks = masks[..., : input_size[0], : input_size[1]]
    if tuple(input_size) == tuple(original_size):  # resizing would change nothing
        return masks
    return F.interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)
