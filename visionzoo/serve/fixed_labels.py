"""An exported zero-shot classifier in the place of a CLIP: it names with the labels that it was exported with."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from visionzoo.export.clip_model import ExportedClip
from visionzoo.export.predictors import ExportedZeroShot
from visionzoo.inference.answers import Prediction
from visionzoo.serve.bounds import Bounds
from visionzoo.serve.services import ClassifyService, ClipService, MakeBatcher


class FixedLabelsService(ClipService):
    """Its own labels, or some of them; no others, and no texts. Pictures have embeddings."""

    takes_texts = False

    def __init__(self, model: ExportedClip, labeller: ExportedZeroShot, bounds: Bounds, make: MakeBatcher) -> None:
        super().__init__(model, labeller.labels, bounds, make)  # type: ignore[arg-type]
        self._each = labeller.multi_label
        self._known = ClassifyService(labeller, make)
        self._only = (
            f"{labeller.name} was exported with its {len(labeller.labels)} labels and takes no other words; "
            "give --clip the run, or an export of both towers (visionzoo export RUN --part clip)"
        )

    async def embed_texts(self, labels: Sequence[str], templates: str | None) -> Tensor:
        """Raises ValueError: the text tower is not in the folder."""
        del templates
        raise ValueError(f"{labels[0]!r:.80} cannot be read: {self._only}")

    async def probabilities(
        self, image: Image.Image, labels: Sequence[str], templates: str | None, *, multi_label: bool = False
    ) -> Prediction:
        """(label, probability), highest first, of some of its labels; of all where none are given.

        Raises:
            ValueError: for a label that it was not exported with, sentences, or another way to score.
        """
        if unknown := [label for label in labels if label not in self.labels]:
            raise ValueError(f"{unknown[0]!r:.80} is none of the labels: {self._only}")
        if templates is not None or (multi_label and not self._each):
            raise ValueError(f"sentences and the way to score are part of an export: {self._only}")
        found = await self._known.answers(image, top_k=len(self.labels))
        wanted = set(labels or self.labels)
        found = [(label, probability) for label, probability in found if label in wanted]
        total = 1.0 if self._each else sum(probability for _, probability in found)
        return [(label, probability / total if total else 0.0) for label, probability in found]
