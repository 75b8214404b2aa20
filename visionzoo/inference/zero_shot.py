"""Name what is in images with labels that a person types, by a CLIP or SigLIP.

Legend: B batch, C channels, (H, W) pixels, N images, K labels, E embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.data.sources.readable_names import WNID, readable_names
from visionzoo.data.sources.templates import BARE, Templates, describe_templates, resolve_templates
from visionzoo.inference.answers import Scorer
from visionzoo.inference.classifier import ImageLabeller
from visionzoo.inference.device import as_input, own_precision, resolve_device
from visionzoo.inference.load_clip import load_clip
from visionzoo.inference.locks import Lock
from visionzoo.inference.text_cache import TextCache
from visionzoo.models.calibration import Calibration
from visionzoo.models.clip import Clip

#: What a label is compared with where each is scored by itself and the model has no bias for that.
NEUTRAL = "something"
#: Labels of up to so many words are words, not captions.
_BARE_WORDS = 2


class _Labels(NamedTuple):
    """Labels and what they are compared by, swapped whole: an answer never mixes two sets."""

    labels: tuple[str, ...]
    weights: Tensor  #: (K, E)
    neutral: Tensor | None  #: (1, E)
    calibration: Calibration | None = None  #: for these labels


class ZeroShotClassifier(ImageLabeller):
    """A classifier whose classes are texts. An image is whatever :class:`visionzoo.ImageClassifier` takes.

    Probabilities are a softmax over the labels, so they say which label fits best, not whether one fits: give
    ``unknown``, or a label such as "something else". With ``multi_label`` each label is scored by itself: SigLIP was
    trained for that; for CLIP the score compares the label with the neutral word "something".

    Threads may share one: labels are added and removed one call at a time, and an answer is by the labels that were
    there when its call began. What :meth:`calibrate` finds is kept until labels are added or removed.
    """

    how_to_calibrate = (
        "call calibrate(images, labels) on labelled images first; for the command, --calibrate FOLDER. Labels that are "
        "added or removed need it anew"
    )

    def __init__(
        self,
        model: Clip,
        labels: Sequence[str],
        templates: Templates | None = None,
        *,
        multi_label: bool = False,
        unknown: float | None = None,
        unknown_label: str = "unknown",
        cache_dir: str | Path | None = None,
        text_batch_size: int = 256,
        device: str | torch.device | None = None,
        name: str | None = None,
    ) -> None:
        """
        Args:
            model: from :func:`visionzoo.create_clip`; it is put in eval mode.
            labels: K texts, at least one, no two the same but for case and spaces. ImageNet's codes (``n02123045``)
                become their names.
            templates: sentences with one ``{}`` for the label, or functions from label to sentence: None for the label
                as it stands, one, several whose mean is taken, or a name: ``imagenet`` for the 80 that published
                numbers are made with, ``imagenet-simple`` for 7 of them, ``varied`` for 80 others.
            multi_label: whether each label is scored by itself.
            unknown: an image whose best label has a lower probability is first called ``unknown_label``; in (0, 1).
            unknown_label: what to call it.
            cache_dir: where text embeddings are kept between processes; None for memory only.
            text_batch_size: prompts encoded at a time.
            device: where the model goes; None leaves it where it is.
            name: what it is called in messages and tables; None for the model's name.

        Raises:
            ValueError: for no labels, empty or repeated ones, a template without ``{}``, a threshold outside (0, 1), or
                a model without a tokenizer.
        """
        if not isinstance(model, Clip):
            raise ValueError(f"a zero-shot classifier needs a model of create_clip, not {type(model).__name__}")
        if unknown is not None and not 0 < unknown < 1:
            raise ValueError(f"unknown={unknown} must be above 0 and below 1: the least probability of a known label")
        self.model = model.eval() if device is None else model.eval().to(resolve_device(device))
        self.device = self.model.logit_scale.device
        self.preprocess = model.preprocess
        self.name = name or model.name
        self.multi_label = multi_label
        self.unknown = unknown
        self.unknown_label = unknown_label
        self.templates = resolve_templates(templates)
        self.templates_name = describe_templates(templates)  #: what results say of them
        self._cache = TextCache(self.model, self.templates, cache_dir, text_batch_size)
        self._lock = Lock()
        self._held = self._embedded(checked_labels(labels, ()))

    @classmethod
    def load(
        cls,
        source: str | Path,
        labels: Sequence[str] | None = None,
        templates: Templates | None = None,
        *,
        multi_label: bool = False,
        unknown: float | None = None,
        cache_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        weights: str | Path | None = None,
    ) -> ZeroShotClassifier:
        """A classifier from a run folder or released weights.

        Args:
            source: a run folder of a CLIP, a folder with weights of open_clip or transformers and their configuration,
                or ``hf-hub:org/name``; or a name such as ``ViT-B-32``, with ``weights``.
            labels: None for those that were saved with a run, where there are any.
            device: None for a GPU where there is one, otherwise the CPU.
            weights: of a name.

        The other arguments are those of the class.

        Raises:
            FileNotFoundError: if there is no such folder, or no model in it.
            ValueError: for a model of another task, one whose configuration is unknown, or no labels.
        """
        model, saved = load_clip(source, device, weights=weights)
        if labels is None and not saved:
            raise ValueError(f"{source} has no labels of its own; give labels=['cat', 'dog', ...]")
        return cls(
            model,
            saved if labels is None else labels,
            templates,
            multi_label=multi_label,
            unknown=unknown,
            cache_dir=cache_dir,
            name=Path(source).name,
        )

    def add(self, labels: str | Sequence[str]) -> None:
        """Add labels; only these are encoded.

        Raises:
            ValueError: for empty labels, or ones that are there.
        """
        with self._lock:
            new = checked_labels([labels] if isinstance(labels, str) else labels, self.labels)
            self._held = self._embedded((*self.labels, *new))

    def remove(self, labels: str | Sequence[str]) -> None:
        """Remove labels; nothing is encoded, and their embeddings stay at hand.

        Raises:
            ValueError: for a label that is not there, or if none would be left.
        """
        with self._lock:
            self._held = self._embedded(self._without([labels] if isinstance(labels, str) else labels))

    def _without(self, labels: Sequence[str]) -> tuple[str, ...]:
        gone = {_folded(label) for label in spoken_labels(labels)}
        if unknown := gone - {_folded(label) for label in self.labels}:
            raise ValueError(f"there is no label {', '.join(map(repr, sorted(unknown)))}; there are {self._shown()}")
        left = tuple(label for label in self.labels if _folded(label) not in gone)
        if not left:
            raise ValueError(f"removing {', '.join(sorted(gone))} leaves no label; make a new classifier instead")
        return left

    def _about(self) -> list[str]:
        return [f"templates: {self.templates_name}", *(["each label by itself"] if self.multi_label else [])]

    @property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """What it answers with."""
        return self._held.labels

    @property
    def text_embeddings(self) -> Tensor:
        """(K, E) float32 of length one, in the order of ``labels``."""
        return self._held.weights

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.model.embed_dim

    def _embedded(self, labels: tuple[str, ...]) -> _Labels:
        if self.templates == (BARE,) and all(len(label.split()) <= _BARE_WORDS for label in labels):
            warnings.warn(
                "the labels are bare words, and this model learned from captions: templates='a photo of a {}.' or "
                "templates='imagenet' names images better",
                stacklevel=3,
            )
        if len(labels) == 1 and not self.multi_label:
            warnings.warn(
                f"with the one label {labels[0]!r} every image has it with probability 1; add labels, or use "
                "multi_label=True",
                stacklevel=3,
            )
        if alike := self._cache.read_alike(labels):
            named = "; ".join(" and ".join(map(ascii, group)) for group in alike[:5])
            more = f"; and {len(alike) - 5} more groups" if len(alike) > 5 else ""
            warnings.warn(
                f"labels that this model reads as the same tokens, and cannot tell apart: {named}{more}. Remove "
                "all but one of each, or say what differs in other words",
                stacklevel=3,
            )
        compares = self.multi_label and self.model.logit_bias is None
        return _Labels(labels, self._cache.embed(labels), self._cache.embed([NEUTRAL]) if compares else None)

    def _features(self, images: Tensor) -> Tensor:
        with own_precision(self.model):
            return F.normalize(self.model.encode_image(as_input(images, self.model.visual)).float(), dim=-1)

    @property
    def calibration(self) -> Calibration | None:
        """What :meth:`calibrate` found; None before, and after labels were added or removed."""
        return self._held.calibration

    def use_calibration(self, calibration: Calibration, labels: tuple[str, ...]) -> Calibration:
        with self._lock:
            if labels != self.labels:
                raise ValueError("labels were added or removed while their probabilities were calibrated; do it again")
            self._held = self._held._replace(calibration=calibration)
        return calibration

    def _scorer(self) -> Scorer:
        held = self._held
        logits = partial(self._logits, held=held)
        return Scorer(self.name, held.labels, logits, self.multi_label, held.calibration)

    def _logits(self, images: Tensor, held: _Labels) -> Tensor:
        """(B, C, H, W) normalised images -> (B, K) logits of the labels that were held when it was asked."""
        features, scale = self._features(images), self.model.logit_scale.float().exp()
        cosines = features @ held.weights.T
        if not self.multi_label:
            return scale * cosines  # a bias would change nothing
        if self.model.logit_bias is not None:
            return scale * cosines + self.model.logit_bias.float()
        assert held.neutral is not None
        return scale * (cosines - features @ held.neutral.T)

    def linear(self) -> tuple[Tensor, float, float]:
        """What its logits are, in one formula: ``scale * (features @ weights.T) + bias`` with weights (K, E)."""
        held, scale = self._held, float(self.model.logit_scale.detach().exp())
        if not self.multi_label:
            return held.weights, scale, 0.0
        if self.model.logit_bias is not None:
            return held.weights, scale, float(self.model.logit_bias.detach())
        assert held.neutral is not None
        return held.weights - held.neutral, scale, 0.0

    def _shown(self) -> str:
        shown = ", ".join(self.labels[:10])
        return shown if len(self.labels) <= 10 else f"{shown} and {len(self.labels) - 10} more"


def spoken_labels(labels: Iterable[str]) -> list[str]:
    """Labels with the names of ImageNet's codes in their place; all others as they are."""
    given = list(labels)
    codes = [x for x in given if isinstance(x, str) and WNID.fullmatch(x)]
    names = dict(zip(codes, readable_names(codes), strict=True))
    return [names.get(x, x) if isinstance(x, str) else x for x in given]


def _folded(label: str) -> str:
    """What makes two labels the same: the tokenizer does not see case and spaces."""
    return " ".join(label.split()).casefold()


def checked_labels(labels: Iterable[str], existing: Sequence[str]) -> tuple[str, ...]:
    """New labels, stripped, none empty and none there already."""
    if isinstance(labels, str):
        raise ValueError(f"labels={labels!r} is one text; give a list, such as {labels.split(',')!r}")
    seen = {_folded(label): label for label in existing}
    found = []
    for position, label in enumerate(spoken_labels(labels)):
        if not isinstance(label, str):
            raise ValueError(f"label {position} is a {type(label).__name__}, not a text: {label!r:.60}")
        if not label.strip():
            raise ValueError(f"label {position} is empty; remove it or say what it stands for")
        if (other := seen.get(_folded(label))) is not None:
            raise ValueError(f"label {label!r} is there already, as {other!r}; case and spaces make no difference")
        seen[_folded(label)] = label
        found.append(label.strip())
    if not found:
        raise ValueError("there are no labels; give at least one, better two or more")
    return tuple(found)
