"""What every source of labelled images offers, and the tools they share.

Legend: N samples, K classes.
"""

from __future__ import annotations

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from visionzoo.data.images import ImageInput, open_image

#: The target of a sample that has no label.
NO_LABEL = -1


class Source(ABC):
    """Labelled images by position. Labels are known at birth; an image is read only when it is asked for.

    Subclasses set the three attributes and implement :meth:`sample_id` and :meth:`raw`. A source travels to worker
    processes, so it pickles, and it keeps its lists packed: touching a Python object per sample would copy memory in
    every forked worker.
    """

    classes: tuple[str, ...]  #: names, in the order of the class indices
    targets: (
        np.ndarray
    )  #: (N,) int64 class indices or, for multi-label data, (N, K) float32 in {0, 1}; -1 where unlabelled
    multi_label: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def sample_id(self, i: int) -> str:
        """Where sample ``i`` came from, for people: a path, or a file and a row."""

    @abstractmethod
    def raw(self, i: int) -> ImageInput:
        """The undecoded image of sample ``i``.

        Raises:
            UnreadableImage: when there is nothing to decode, for example in an empty table cell.
        """

    def read(self, i: int) -> Image.Image:
        """Sample ``i`` as an upright RGB image.

        Raises:
            UnreadableImage: with the reason.
        """
        return open_image(self.raw(i))

    def has_label(self, i: int) -> bool:
        """Whether sample ``i`` was labelled."""
        return bool(self.targets[i].flat[0] >= 0)

    def preload(self) -> None:
        """Read what every worker would otherwise read for itself. Called once, before workers start."""
        return

    def stable_ids(self) -> Iterable[str]:
        """Words that tell these samples from others, whatever folder the data lie in, for :func:`fingerprint`."""
        return (self.sample_id(i) for i in range(len(self)))

    def take(self, indices: np.ndarray) -> Source:
        """Some samples, in the order of ``indices``."""
        return Subset(self, indices)


class Subset(Source):
    """Some samples of another source, in the order of ``indices``."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.classes = source.classes
        self.multi_label = source.multi_label
        self.targets = source.targets[self.indices]

    def sample_id(self, i: int) -> str:
        """That of the source it was taken from."""
        return self.source.sample_id(int(self.indices[i]))

    def raw(self, i: int) -> ImageInput:
        """As the source it was taken from gives it."""
        return self.source.raw(int(self.indices[i]))

    def preload(self) -> None:
        """Preload the source it was taken from."""
        self.source.preload()

    def stable_ids(self) -> Iterable[str]:
        """Those of the whole source, and a hash of which samples are taken."""
        yield from self.source.stable_ids()
        yield hashlib.blake2b(self.indices.tobytes(), digest_size=16).hexdigest()


class PackedPaths:
    """Many file names in two arrays. Names that are not UTF-8 are kept byte by byte."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self._blob = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        """The name as ``open`` takes it."""
        start = int(self._ends[i - 1]) if i else 0
        return os.fsdecode(self._blob[start : int(self._ends[i])])


def printable(path: str) -> str:
    """A file name that can be printed and written as UTF-8, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class FilesSource(Source):
    """Image files below a folder. With no labels it serves prediction."""

    def __init__(
        self,
        root: str,
        names: Sequence[bytes],
        targets: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        multi_label: bool = False,
    ) -> None:
        """
        Args:
            root: the folder that ``names`` are relative to; absolute names ignore it.
            names: file names as bytes.
            targets: (N,) or (N, K), see :class:`Source`; None for images without labels.
            classes: class names.
            multi_label: whether ``targets`` are (N, K).
        """
        self.root = root
        self.paths = PackedPaths(names)
        self.targets = np.full(len(names), NO_LABEL, dtype=np.int64) if targets is None else targets
        self.classes = classes
        self.multi_label = multi_label
        assert len(self.targets) == len(self.paths)

    def sample_id(self, i: int) -> str:
        """The path of the file, with bytes that are no text written out."""
        return printable(os.path.join(self.root, self.paths[i]))

    def raw(self, i: int) -> ImageInput:
        """The path of the file."""
        return os.path.join(self.root, self.paths[i])

    def stable_ids(self) -> Iterable[str]:
        """Paths below the root, which do not change when the folder is moved."""
        return (printable(self.paths[i]) for i in range(len(self)))


S = TypeVar("S", bound=Source)


@dataclass(frozen=True, kw_only=True)
class Splits(Generic[S]):
    """The splits of one data set, over one list of classes. ``train`` is None where there is nothing to train on."""

    train: S | None = None
    val: S | None = None
    test: S | None = None
    problems: tuple[tuple[str, str], ...] = ()  #: (file, what is wrong with it) of what was passed over
    empty_captions: int = 0  #: captions without a letter, which were dropped
    images_without_objects: int = 0  #: training images that have none and were left out

    @property
    def named(self) -> dict[str, S]:
        """The splits that are there, by name: train, val, test."""
        return {name: s for name, s in (("train", self.train), ("val", self.val), ("test", self.test)) if s is not None}

    @property
    def first(self) -> S:
        """Any split that is there."""
        return next(iter(self.named.values()))

    @property
    def to_evaluate(self) -> S:
        """The validation split, else the test split, else all there is."""
        return self.val or self.test or self.first

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the first split that there is."""
        return self.first.classes

    @property
    def multi_label(self) -> bool:
        """Whether a sample may have several labels."""
        return self.first.multi_label

    def items(self) -> list[tuple[str, S]]:
        """(name, source) of the splits that are there; one that serves twice is listed once."""
        once = {id(source): (name, source) for name, source in reversed(self.named.items())}
        return list(reversed(once.values()))

    def with_splits(self, named: Mapping[str, S]) -> Splits[S]:
        """These splits in the place of all that were there; what was passed over stays."""
        return replace(self, **{name: named.get(name) for name in ("train", "val", "test")})  # type: ignore[arg-type]


def merged(parts: Mapping[str, Splits[S]]) -> Splits[S]:
    """Files named after a split each as one data set; a file with splits inside keeps them."""
    named: dict[str, S] = {}
    for split, found in parts.items():
        named |= {split: found.first} if len(found.named) == 1 else found.named
    return Splits[S](
        problems=tuple(problem for found in parts.values() for problem in found.problems),
        empty_captions=sum(found.empty_captions for found in parts.values()),
    ).with_splits(named)


def class_counts(source: Source) -> np.ndarray:
    """(K,) int64, images per class; in multi-label data an image counts for each of its labels."""
    if source.multi_label:
        return source.targets[source.targets[:, 0] >= 0].sum(axis=0).astype(np.int64)
    labelled = source.targets[source.targets >= 0]
    return np.bincount(labelled, minlength=len(source.classes))


def forget_labels(source: Source) -> Source:
    """The same images as a source without classes."""
    bare = copy.copy(source)
    bare.classes, bare.multi_label = (), False
    bare.targets = np.full(len(source), NO_LABEL, dtype=np.int64)
    return bare


def with_classes(source: Source, classes: tuple[str, ...], name: str) -> Source:
    """The same samples, with targets that index into ``classes``.

    Raises:
        ValueError: when a class that has samples is not in ``classes``; ``name`` says which split that is.
    """
    if source.classes == classes:
        return source
    counts = class_counts(source)
    place = {c: k for k, c in enumerate(classes)}
    unknown = [c for c, n in zip(source.classes, counts, strict=True) if n and c not in place]
    if unknown:
        raise ValueError(
            f"{name} has {_some(unknown)} that the class list does not have ({_some(classes)}); "
            "the class sets of all splits must match"
        )
    known = [(k, place[c]) for k, c in enumerate(source.classes) if c in place]
    aligned = copy.copy(source)
    aligned.classes = classes
    if source.multi_label:
        aligned.targets = np.zeros((len(source), len(classes)), dtype=np.float32)
        aligned.targets[source.targets[:, 0] < 0] = NO_LABEL
        for old, new in known:
            aligned.targets[:, new] = source.targets[:, old]
    else:
        table = np.full(len(source.classes) + 1, NO_LABEL, dtype=np.int64)  # the last entry serves target -1
        for old, new in known:
            table[old] = new
        aligned.targets = table[source.targets]
    return aligned


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(repr(n) for n in names[:limit])
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{more}"


def fingerprint(splits: Splits[S]) -> str:
    """A short hash of which samples with which labels are in which split. Reads no image, and no location counts."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((splits.classes, splits.multi_label)).encode())
    for name, source in splits.items():
        digest.update(f"\0{name}\0".encode())
        for sample in source.stable_ids():
            digest.update(sample.encode() + b"\0")
        digest.update(np.ascontiguousarray(source.targets).tobytes())
    return digest.hexdigest()
