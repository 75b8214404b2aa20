"""What each model answers, for many askers at a time.

Legend: C channels, (H, W) pixels of a model's input, K labels, E embedding, (h, w) cells.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visionzoo.data.sources.templates import resolve_templates
from visionzoo.data.transforms import EvalTransform
from visionzoo.inference.answers import Asked, Prediction
from visionzoo.inference.attention import attention_heat
from visionzoo.inference.classifier import ImageLabeller
from visionzoo.inference.device import as_input, own_precision
from visionzoo.inference.stream import Stream
from visionzoo.inference.text_cache import TextCache
from visionzoo.inference.zero_shot import NEUTRAL, checked_labels
from visionzoo.models.clip import Clip
from visionzoo.models.preprocess import Normalize
from visionzoo.serve.batching import Batcher
from visionzoo.serve.bounds import Bounds, Refused
from visionzoo.serve.pictures import is_tiny

#: Makes a :class:`Batcher` of a name and a function, with the bounds of the server.
MakeBatcher = Callable[..., Batcher]
#: Sets of sentences whose texts are kept.
_TEMPLATES_KEPT = 8
#: Sentences after which what was encoded is forgotten: people may type for years.
_TEXTS_KEPT = 200_000


class PictureLine:
    """A model of pictures, and the line before it."""

    def __init__(self, name: str, stream: Stream, make: MakeBatcher, then: Callable[[Tensor, Any], Any] | None = None):
        """
        Args:
            name: of the line.
            stream: the model.
            make: the line.
            then: (1, ...) what the model gives and the question -> the answer, in the model's thread: the loop that
                serves all does no work that another thread could stand in the way of.
        """
        self._stream, self._then = stream, then
        self._line = make(name, self._run)

    async def ask(self, image: Image.Image, question: Any = None) -> Any:
        """What ``then`` makes of the model's answer, or that itself."""
        transform = self._stream.transform
        ready = image if is_tiny(image) else await asyncio.to_thread(transform, image)
        return await self._line.ask((ready, question))

    def _run(self, asked: list[tuple[Image.Image | Tensor, Any]]) -> list[Any]:
        """In one thread."""
        transform = self._stream.transform
        found = self._stream.answer([x if isinstance(x, Tensor) else transform(x) for x, _ in asked])
        if self._then is None:
            return list(found)
        return [self._then(found[i : i + 1], question) for i, (_, question) in enumerate(asked)]


class ClassifyService:
    """A classifier."""

    def __init__(self, labeller: ImageLabeller, make: MakeBatcher) -> None:
        self.labeller = labeller
        self._scorer = labeller._scorer()
        streams = [
            Stream(forward, labeller.preprocess, labeller.device, raw=labeller.takes_pixels)
            for forward in (self._scorer.scores, labeller._features)
        ]
        self._scores = PictureLine("classify", streams[0], make, lambda row, asked: asked.answers(self._scorer, row)[0])
        self._features = PictureLine("embed", streams[1], make)

    async def answers(self, image: Image.Image, **asked: Any) -> Prediction:
        """(label, probability), highest first; ``asked`` as :class:`Asked` takes it.

        Raises:
            ValueError: for what the classifier cannot promise.
        """
        question = Asked(**asked)
        question.check(self._scorer, self.labeller.how_to_calibrate)
        found: Prediction = await self._scores.ask(image, question)
        return found

    async def embed(self, image: Image.Image) -> Tensor:
        """(E,) float32."""
        found: Tensor = await self._features.ask(image)
        return found


class ClipService:
    """A CLIP: labels that are typed in, and embeddings."""

    takes_texts = True

    def __init__(self, model: Clip, labels: Sequence[str], bounds: Bounds, make: MakeBatcher) -> None:
        self.model, self.labels, self._bounds = model, tuple(labels), bounds
        stream = Stream(self._encode, model.preprocess, model.logit_scale.device, raw=model.takes_pixels)
        self._images = PictureLine("clip", stream, make)
        self._texts = make("texts", self._embed_texts, batch=1)
        self._caches: dict[Any, TextCache] = {}

    def _encode(self, images: Tensor) -> Tensor:
        with own_precision(self.model):
            return F.normalize(self.model.encode_image(as_input(images, self.model.visual)).float(), dim=-1)

    def _embed_texts(self, asked: list[tuple[Any, tuple[str, ...]]]) -> list[Tensor]:
        """In one thread: only labels that are new under these templates go through the text tower."""
        found = []
        for templates, labels in asked:
            cache = self._caches.get(templates)
            if cache is None or cache.encoded > _TEXTS_KEPT:
                self._caches.pop(templates, None)
                while len(self._caches) >= _TEMPLATES_KEPT:
                    del self._caches[next(iter(self._caches))]
                cache = self._caches[templates] = TextCache(self.model, templates, None, 256)
            with torch.inference_mode():
                found.append(cache.embed(labels).cpu())
        return found

    @property
    def encoded(self) -> int:
        """Sentences that went through the text tower."""
        return sum(cache.encoded for cache in self._caches.values())

    async def embed(self, image: Image.Image) -> Tensor:
        """(E,) float32 of length one."""
        found: Tensor = await self._images.ask(image)
        return found

    async def embed_texts(self, labels: Sequence[str], templates: str | None) -> Tensor:
        """(K, E) float32 of length one.

        Raises:
            ValueError: for a template without ``{}``.
            Refused: 413 for more sentences than the bounds allow.
        """
        resolved = resolve_templates(templates)
        if (count := len(labels) * len(resolved)) > self._bounds.sentences:
            raise Refused(413, f"{count:,} sentences (labels times templates) are too many: {self._bounds.sentences:,}")
        found: Tensor = await self._texts.ask((resolved, tuple(labels)))
        return found

    async def probabilities(
        self, image: Image.Image, labels: Sequence[str], templates: str | None, *, multi_label: bool = False
    ) -> list[tuple[str, float]]:
        """(label, probability), highest first, as :class:`visionzoo.ZeroShotClassifier` has them.

        Raises:
            ValueError: for no labels, empty or repeated ones, or a template without ``{}``.
        """
        if long := [label for label in labels if len(label) > self._bounds.label_length]:
            raise ValueError(f"the label {long[0]!r:.60} is longer than {self._bounds.label_length} characters")
        names = checked_labels(labels, ())
        texts, feature = await asyncio.gather(self.embed_texts(names, templates), self.embed(image))
        scale = float(self.model.logit_scale.detach().exp())
        cosines = texts @ feature
        if not multi_label:
            scores = (scale * cosines).softmax(0)
        elif self.model.logit_bias is not None:
            scores = (scale * cosines + float(self.model.logit_bias.detach())).sigmoid()
        else:
            neutral = (await self.embed_texts([NEUTRAL], templates))[0]
            scores = (scale * (cosines - neutral @ feature)).sigmoid()
        order = scores.argsort(descending=True, stable=True).tolist()
        return [(names[i], float(scores[i])) for i in order]


def attention_of(model: Any, preprocess: Any, image: Image.Image) -> dict[str, Any]:
    """Where a model looks: what it saw of the picture, and for each cell how often compared with an equal share.

    Args:
        model: a backbone with ``attention_maps``, or a classifier.
        preprocess: that it was trained with.
        image: RGB.

    Returns:
        ``seen``, a PNG as a data address, and ``heat``, (h, w) numbers.

    Raises:
        ValueError: for a model without attention maps.
    """
    seen = EvalTransform(preprocess)(image)
    where = next(model.parameters()).device
    with torch.inference_mode():
        heat = attention_heat(model, Normalize(preprocess).to(where)(seen[None].to(where)))[0].cpu()
    patch = model.patch_embed.patch_size
    pixels = np.ascontiguousarray(seen.permute(1, 2, 0).numpy())
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    out = io.BytesIO()
    # the last patches may reach beyond the picture, or leave some of it out
    picture.crop((0, 0, heat.shape[1] * patch, heat.shape[0] * patch)).save(out, "PNG")
    share = (heat / heat.mean()).double().numpy().round(4).tolist()
    return {"seen": f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}", "heat": share}
