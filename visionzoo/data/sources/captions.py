"""Images with captions: any source of images, beside what was written about each.

Legend: N samples, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from PIL import Image

from visionzoo.data.images import ImageInput
from visionzoo.data.sources.base import NO_LABEL, Source, Subset
from visionzoo.data.sources.readable_names import readable_names
from visionzoo.data.sources.templates import Templates, fill, resolve_templates
from visionzoo.text import check_text, nfc

DEFAULT_TEMPLATES = ("a photo of a {}.",)


class Texts(Protocol):
    """Captions by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[str, ...]: ...

    def take(self, indices: np.ndarray) -> Texts:
        """The captions of some samples, in the order of ``indices`` (n,)."""
        ...

    def digest(self) -> str:
        """A hash of all captions and of which sample has which."""
        ...


class PackedTexts:
    """Any number of captions per sample, in three arrays: forked workers share them, and they pickle fast."""

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        encoded: list[bytes] = []
        last: list[int] = []
        for several in texts:
            encoded += [text.encode() for text in several]
            last.append(len(encoded))
        self._blob = b"".join(encoded)
        self._starts = np.cumsum([0, *(len(text) for text in encoded)], dtype=np.int64)
        self._last = np.array([0, *last], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._last) - 1

    def __getitem__(self, i: int) -> tuple[str, ...]:
        edges = self._starts[self._last[i] : self._last[i + 1] + 1].tolist()
        return tuple(self._blob[a:b].decode() for a, b in pairwise(edges))

    def take(self, indices: np.ndarray) -> PackedTexts:
        """Those of some samples, in the order of ``indices`` (n,)."""
        return PackedTexts(self[int(i)] for i in indices)

    def digest(self) -> str:
        """A hash of all captions, 32 hex digits."""
        digest = hashlib.blake2b(self._blob, digest_size=16)
        digest.update(self._starts.tobytes() + self._last.tobytes())
        return digest.hexdigest()


class ClassTexts:
    """The captions of a sample are those of its class; a sample without a class has none."""

    def __init__(self, targets: np.ndarray, of_class: Sequence[tuple[str, ...]]) -> None:
        """
        Args:
            targets: (N,) int64 class indices, -1 for none.
            of_class: K tuples of captions.
        """
        self.targets = targets
        self.of_class = tuple(of_class)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[str, ...]:
        target = int(self.targets[i])
        return self.of_class[target] if target >= 0 else ()

    def take(self, indices: np.ndarray) -> ClassTexts:
        """Those of some samples, in the order of ``indices`` (n,)."""
        return ClassTexts(self.targets[indices], self.of_class)

    def digest(self) -> str:
        """A hash of the classes' texts and of which sample has which, 32 hex digits."""
        return hashlib.blake2b(repr(self.of_class).encode() + self.targets.tobytes(), digest_size=16).hexdigest()


class CaptionSource(Source):
    """Images of another source, with the captions of each. Classes are there where the images have them."""

    def __init__(
        self, images: Source, texts: Texts, *, classes: tuple[str, ...] = (), targets: np.ndarray | None = None
    ) -> None:
        """
        Args:
            images: N images.
            texts: N tuples of captions, some may be empty.
            classes: class names for zero-shot evaluation.
            targets: (N,) int64 class indices; None without classes.
        """
        assert len(images) == len(texts)
        self.images, self.texts = images, texts
        self.classes = classes
        self.targets = np.full(len(images), NO_LABEL, dtype=np.int64) if targets is None else targets

    def captions(self, i: int) -> tuple[str, ...]:
        """All captions of sample ``i``; an empty tuple if it has none."""
        return self.texts[i]

    def take(self, indices: np.ndarray) -> CaptionSource:
        """Some samples, in the order of ``indices`` (n,)."""
        images = Subset(self.images, indices)
        return CaptionSource(images, self.texts.take(indices), classes=self.classes, targets=self.targets[indices])

    def sample_id(self, i: int) -> str:
        return self.images.sample_id(i)

    def raw(self, i: int) -> ImageInput:
        return self.images.raw(i)

    def read(self, i: int) -> Image.Image:
        return self.images.read(i)

    def preload(self) -> None:
        self.images.preload()

    def stable_ids(self) -> Iterable[str]:
        """Those of the images, and a hash of the captions."""
        yield from self.images.stable_ids()
        yield self.texts.digest()


def clean_captions(found: Any, where: str) -> tuple[tuple[str, ...], int]:
    """Captions as they stand in a table: one, a list of them, or nothing.

    Space around and line breaks inside a caption go; other characters, ASCII or not, stay, in Unicode's composed form.

    Returns:
        the captions, and how many were dropped since nothing was written in them.

    Raises:
        ValueError: for anything else than text, and text that is not UTF-8; ``where`` says where it stands.
    """
    several = found if isinstance(found, list | tuple) else [] if found is None else [found]
    kept: list[str] = []
    for text in several:
        if not isinstance(text, str | None):
            raise ValueError(f"{where}: a caption is {type(text).__name__} {text!r:.60}; need text or a list of it")
        words = nfc(" ".join(check_text(text or "", where).split()))
        if words:
            kept.append(words)
    return tuple(kept), len(several) - len(kept)


def class_templates(given: Templates | None) -> tuple[str, ...]:
    """Sentences with ``{}`` for the name of a class, of what a user gives, see :func:`resolve_templates`."""
    return tuple(fill(template, "{}") for template in resolve_templates(DEFAULT_TEMPLATES if given is None else given))


def captions_from_classes(source: Source, templates: Sequence[str]) -> CaptionSource:
    """Images with class labels as images with captions, one for each template.

    Args:
        source: images with one label each.
        templates: such as ``a photo of a {}.``; the class name takes the place of ``{}``.

    Raises:
        ValueError: for a template without ``{}``, for no template, or for multi-label images.
    """
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"templates={list(templates)} need {{}} for the class name, such as 'a photo of a {{}}.'")
    if source.multi_label:
        raise ValueError("templates make captions of one class per image, and these images have several")
    of_class = [
        tuple(template.replace("{}", name) for template in templates) for name in readable_names(source.classes)
    ]
    texts = ClassTexts(source.targets, of_class)
    return CaptionSource(source, texts, classes=source.classes, targets=source.targets)
