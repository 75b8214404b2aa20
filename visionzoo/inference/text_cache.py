"""Text embeddings of labels, in memory and, on request, on disk.

Legend: K labels, T templates, L context length, E embedding.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.cache import Cache
from visionzoo.data.sources.templates import Template, fill
from visionzoo.inference.device import own_precision
from visionzoo.inference.locks import Lock
from visionzoo.inference.progress import track
from visionzoo.models.clip.model import Clip
from visionzoo.weights.fingerprint import model_fingerprint

#: Prompts whose ids are held at once: 80 MB at 77 tokens.
_ROUND = 2**17


class TextCache:
    """The embeddings of labels under one model and one set of templates: each is computed once.

    Args:
        model: the CLIP.
        templates: sentences with one ``{}``, or functions from label to sentence.
        folder: where embeddings are kept between processes; None for memory only. An entry belongs to exactly this
            model, a row in it to the sentences about a label.
        batch_size: prompts encoded at a time.
    """

    def __init__(self, model: Clip, templates: Sequence[Template], folder: str | Path | None, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"text_batch_size={batch_size} must be at least 1")
        self.model = model
        self.templates = tuple(templates)
        self.batch_size = batch_size
        self.encoded = 0  #: prompts that went through the text tower
        self._lock = Lock()  # what one thread adds to the memory or the file, another would lose
        self._tokens: dict[str, bytes] = {}
        self._memory: dict[str, Tensor] = {}
        self._disk = None if folder is None else Cache("texts", folder, of=_fingerprint(model))

    def embed(self, labels: Sequence[str]) -> Tensor:
        """(K, E) float32 of length one: the mean direction of each label's sentences, on the model's device."""
        with self._lock:
            self._fetch(labels)
        rows = torch.stack([self._memory[label] for label in labels])
        return rows.to(self.model.logit_scale.device)

    def _fetch(self, labels: Sequence[str]) -> None:
        """Put the embeddings of labels into the memory, from the file or the model."""
        missing = [label for label in labels if label not in self._memory]
        if missing and self._disk is not None:
            stored = self._disk.read() or {}
            keys = {label: self._key(label) for label in missing}
            self._memory |= {label: stored[key] for label, key in keys.items() if key in stored}
            missing = [label for label in missing if label not in self._memory]
        if missing:
            step = max(1, _ROUND // len(self.templates))
            for start in range(0, len(missing), step):
                some = missing[start : start + step]
                self._memory.update(zip(some, self._encode(some).cpu(), strict=True))
            if self._disk is not None:  # others may have written since
                stored = self._disk.read() or {}
                self._disk.write(stored | {self._key(label): self._memory[label] for label in missing})

    def read_alike(self, labels: Sequence[str]) -> list[list[str]]:
        """Groups of labels whose first sentences are the same tokens: composed letters, signs, or what is cut off."""
        with self._lock:
            new = [label for label in labels if label not in self._tokens]
            for start in range(0, len(new), _ROUND):
                some = new[start : start + _ROUND]
                ids = self.model.tokenizer([fill(self.templates[0], label) for label in some])
                self._tokens.update(zip(some, (row.numpy().tobytes() for row in ids), strict=True))
            groups: dict[bytes, list[str]] = {}
            for label in labels:
                groups.setdefault(self._tokens[label], []).append(label)
        return [group for group in groups.values() if len(group) > 1]

    def _encode(self, labels: list[str]) -> Tensor:
        with torch.inference_mode(), own_precision(self.model):
            return self._encode_sentences(labels)

    def _encode_sentences(self, labels: list[str]) -> Tensor:
        """(K, E): all sentences of all labels, the short ones together, since a batch is as long as its longest."""
        model, count = self.model, len(self.templates)
        cut = model.tokenizer.truncated
        ids = model.tokenizer([sentence for label in labels for sentence in self._sentences(label)])
        if cut := model.tokenizer.truncated - cut:
            warnings.warn(
                f"{cut} of {len(ids)} prompts are longer than the {model.context_length} tokens this model reads, and "
                "were cut at the end; use shorter labels",
                stacklevel=7,
            )
        order = model.text.pooled_place(ids).argsort()
        device = model.logit_scale.device
        sums = torch.zeros(len(labels), model.embed_dim, device=device)
        batches = order.split(self.batch_size)
        for batch in track(batches, len(batches), "labels"):
            features = model.encode_text(ids[batch].to(device)).float()
            sums.index_add_(0, (batch // count).to(device), F.normalize(features, dim=-1))
        self.encoded += len(ids)
        return F.normalize(sums, dim=-1)

    def _sentences(self, label: str) -> list[str]:
        return [fill(template, label) for template in self.templates]

    def _key(self, label: str) -> str:
        """What a function makes of a label is known only by its sentences."""
        return hashlib.sha256("\0".join(self._sentences(label)).encode("utf-8", "surrogatepass")).hexdigest()


def _fingerprint(model: Clip) -> str:
    """Changes with everything that the embedding of a sentence depends on: the text tower and the tokenizer."""
    return model_fingerprint(model.text, context=("texts", model.tokenizer.fingerprint))
