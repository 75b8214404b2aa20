"""An exported SAM with the methods of :class:`visionzoo.SamPredictor`.

Legend: N prompts, C width, (h, w) embedding grid, (H', W') the resized picture, M masks per prompt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from visionzoo.export.to_onnx import OnnxRunner
from visionzoo.inference.sam_predictor import SamImage, SamPredictor
from visionzoo.models.sam.model import SamContext, SamOutput, full_size_masks
from visionzoo.models.sam.prompts import IGNORED, Prompts


class _LowMasks(NamedTuple):
    """What the decoder's graph gave: it has no step between scores and masks."""

    low: Tensor  #: (N, M, 4 h, 4 w)

    def select(self, index: Tensor) -> _LowMasks:
        """Only some of the prompts: ``index`` (n,)."""
        return _LowMasks(self.low[index])


class ExportedSam(nn.Module):
    """What predictors and everything-mode ask of a SAM, answered by two graphs."""

    def __init__(self, spec: dict[str, Any], encoder: OnnxRunner, decoder: OnnxRunner) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.name = str(spec["name"])
        self.image_size, self.embedding_size, self.mask_size = (
            (int(spec[key][0]), int(spec[key][1])) for key in ("image_size", "embedding_size", "mask_size")
        )
        self.decoder_dim, self.mask_threshold = int(spec["decoder_dim"]), float(spec["mask_threshold"])
        self.ambiguous = bool(spec.get("ambiguous", True))
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # predictors ask models where they are

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return self.place.device

    def context(self, embedding: Tensor) -> SamContext:
        """An embedding (1, C, h, w); what its prompts share is made in the graph."""
        return SamContext(embedding, None)  # type: ignore[arg-type]

    def ask(self, context: SamContext, prompts: Prompts, multimask: bool | None = True) -> SamOutput:
        """Answer prompts about an image, as :meth:`visionzoo.models.sam.model.Sam.ask`: (N, M, 4 h, 4 w) and (N, M).

        Raises:
            ValueError: for text prompts, which the graph does not take.
        """
        if prompts.text is not None:
            raise ValueError(f"{self.name} was exported without text prompts; use points, boxes and masks")
        n, points, labels = prompts.number, prompts.points, prompts.labels
        if not points.shape[1]:  # the graph wants a point; this one nobody sees
            points, labels = torch.zeros(n, 1, 2), torch.full((n, 1), IGNORED)
        masks = torch.zeros(n, 1, *self.mask_size) if prompts.masks is None else prompts.masks
        has = torch.full((n,), prompts.masks is not None) if prompts.has_mask is None else prompts.has_mask
        feed = (context.embedding, torch.zeros(n, dtype=torch.int64), points, labels, masks.float(), has)
        low, scores = (torch.from_numpy(x) for x in self.decoder(*(x.numpy() for x in feed)))
        chosen = slice(None) if multimask is None else slice(1, None) if multimask else slice(0, 1)
        return SamOutput(low[:, chosen], scores[:, chosen])

    def ask_scores(
        self, context: SamContext, prompts: Prompts, multimask: bool | None = True
    ) -> tuple[_LowMasks, Tensor]:
        """As :meth:`visionzoo.models.sam.model.Sam.ask_scores`; the masks are there already."""
        low, scores = self.ask(context, prompts, multimask)
        return _LowMasks(low), scores

    @property
    def mask_decoder(self) -> ExportedSam:
        """What :meth:`masks` is asked of."""
        return self

    @staticmethod
    def masks(decoded: _LowMasks, multimask: bool | None) -> Tensor:
        """(n, M, 4 h, 4 w) logits of what :meth:`ask_scores` gave, asked in the same way."""
        del multimask
        return decoded.low

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]) -> Tensor:
        """Logits (N, M, 4 h, 4 w) to the pixels of the picture, (N, M, height, width)."""
        return full_size_masks(masks, self.image_size, input_size, original_size)


class ExportedSamPredictor(SamPredictor):
    """:class:`visionzoo.SamPredictor` on an exported folder, without text prompts. Made by ``load_exported``."""

    model: Any

    def __init__(self, model: ExportedSam) -> None:
        super().__init__(model)  # type: ignore[arg-type]

    def _encode(self, pixels: list[Tensor], original_sizes: list[tuple[int, int]]) -> list[SamImage]:
        images = np.zeros((len(pixels), 3, *self.model.image_size), dtype=np.uint8)
        sizes = [(int(x.shape[1]), int(x.shape[2])) for x in pixels]
        for image, x, (height, width) in zip(images, pixels, sizes, strict=True):
            image[:, :height, :width] = (x.round().clamp(0, 255) if x.is_floating_point() else x).numpy()
        (found,) = self.model.encoder(images, np.array(sizes))
        embeddings = torch.from_numpy(found)
        return [
            SamImage(original, size, self.model.context(embedding.unsqueeze(0)))
            for original, size, embedding in zip(original_sizes, sizes, embeddings, strict=True)
        ]
