"""Read a whole data set once and say what is in it: ``visionzoo data check PATH``.

What a data set is for shows in how it lies there (:func:`visionzoo.data.sources.open.kind_of`), and it is checked as
that task would read it.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from visionzoo.data.images import ImageFacts, ImageInput, UnreadableImage, image_facts
from visionzoo.data.sources.base import Source, Splits, class_counts
from visionzoo.data.sources.captions import CaptionSource
from visionzoo.data.sources.objects import ObjectSource, check_size
from visionzoo.data.sources.open import kind_of, open_data
from visionzoo.data.sources.reading import CaptionReading, Kind, LabelReading
from visionzoo.processors import usable_cores
from visionzoo.terminal import visible_name

#: What each kind of data is called in a report.
LAYOUTS: dict[Kind, str] = {
    "labels": "classes",
    "captions": "images with captions",
    "objects": "images with masks",
    "images": "images",
}
#: A largest class this many times the smallest is worth a warning.
IMBALANCE = 10.0
#: Lists in the text form stop here; the dictionary has them whole.
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What one split holds."""

    samples: int
    counts: dict[str, int]  #: labelled images per class
    unlabelled: int  #: images without a label; without a caption, or without an object, where the data have those
    width: tuple[int, int, int]  #: smallest, median, largest, in pixels; zeros if nothing was readable
    height: tuple[int, int, int]
    modes: dict[str, int]  #: PIL's modes, before conversion to RGB
    formats: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]  #: (sample id, reason)
    captions: int = 0
    objects: tuple[int, int, int] = (0, 0, 0)  #: masks of an image: smallest, median, largest number


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What :func:`check_data` found."""

    path: str
    layout: str  #: one of :data:`LAYOUTS`
    classes: tuple[str, ...]
    multi_label: bool
    splits: dict[str, SplitReport]
    duplicates_within: tuple[tuple[str, ...], ...]  #: sample ids of equal content in one split
    duplicates_across: tuple[tuple[str, ...], ...]  #: sample ids, with their split, of equal content in several splits
    conflicting_labels: tuple[tuple[str, ...], ...]  #: sample ids of equal content under different labels
    problems: tuple[tuple[str, str], ...]  #: (file, what is wrong with it) of what a task would pass over
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """A summary to read; long lists are cut and say so."""
        kind = "multi-label" if self.multi_label else "single-label"
        lines = [
            f"{self.path}: " + (f"{len(self.classes)} classes, {kind}" if self.layout == "classes" else self.layout)
        ]
        for name, split in self.splits.items():
            lines += ["", f"{name}: {split.samples} images", *(f"  {line}" for line in _split_lines(split))]
        lines += _section("passed over", tuple((f"{name}: {reason}",) for name, reason in self.problems))
        lines += _section("duplicates within a split", self.duplicates_within)
        lines += _section("duplicates across splits", self.duplicates_across)
        lines += _section("equal images with different labels", self.conflicting_labels)
        lines += ["", *(f"warning: {text}" for text in self.warnings)] if self.warnings else ["", "no problems found"]
        return "\n".join(lines)


def _split_lines(split: SplitReport) -> Iterator[str]:
    for key in ("width", "height"):
        low, middle, high = getattr(split, key)
        yield f"{key}: {low} / {middle} / {high} pixels (smallest / median / largest)"
    for key in ("modes", "formats"):
        yield f"{key}: " + ", ".join(f"{name} {n}" for name, n in getattr(split, key).items())
    counts = sorted(split.counts.items(), key=lambda item: -item[1])
    for name, n in counts if len(counts) <= 2 * _SHOWN else counts[:_SHOWN]:
        yield f"{n:8d}  {visible_name(name)}"
    if len(counts) > 2 * _SHOWN:
        yield f"          ... {len(counts) - 2 * _SHOWN} more classes"
        for name, n in counts[-_SHOWN:]:
            yield f"{n:8d}  {visible_name(name)}"
    if split.captions:
        yield f"{split.captions:8d}  captions"
    if any(split.objects):
        low, middle, high = split.objects
        yield f"objects: {low} / {middle} / {high} in an image (smallest / median / largest)"
    if split.unlabelled:
        yield f"{split.unlabelled:8d}  without a label" if split.counts else f"{split.unlabelled:8d}  without any"
    if split.unreadable:
        yield f"unreadable: {len(split.unreadable)}"
        for name, reason in split.unreadable[:_SHOWN]:
            yield f"  {name}: {reason}"
        if len(split.unreadable) > _SHOWN:
            yield f"  ... and {len(split.unreadable) - _SHOWN} more"


def _section(title: str, groups: tuple[tuple[str, ...], ...]) -> list[str]:
    if not groups:
        return []
    lines = ["", f"{title}: {len(groups)}", *(f"  {' = '.join(group[:4])}" for group in groups[:_SHOWN])]
    return lines + ([f"  ... and {len(groups) - _SHOWN} more"] if len(groups) > _SHOWN else [])


#: split, position, content hash, facts or the reason why there are none, number of objects
_Read = tuple[str, int, bytes, ImageFacts | str, int]


@dataclass
class _SplitFacts:
    """Facts gathered while reading one split."""

    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)


def check_data(
    path: str | os.PathLike[str],
    *,
    val_path: str | os.PathLike[str] | None = None,
    val_fraction: float | None = None,
    num_threads: int | None = None,
    progress: bool = False,
    **options: Any,
) -> DataReport:
    """Decode every image of a data set, and report counts, sizes, modes, formats, unreadable files and duplicates.

    Args:
        path: anything that ``--data.path`` of a task takes.
        val_path, val_fraction: as in :func:`visionzoo.data.sources.open.open_data`.
        num_threads: images decoded at a time; None for the number of cores, at most 8.
        progress: show a progress bar on standard error.
        options: of :class:`visionzoo.data.sources.reading.LabelReading`, for data with labels.

    Raises:
        FileNotFoundError, ValueError: for data that cannot be opened at all, as training would.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kind = kind_of(path)
        read = {"labels": LabelReading(**options), "captions": CaptionReading(templates="{}")}.get(kind)
        if kind == "images" and val_path is None:
            val_fraction = 0.0  # nothing would be learned from what is held out
        splits = open_data(path, kind, read, val_path=val_path, val_fraction=val_fraction)
    return check_splits(
        os.fspath(path), kind, splits, said=[str(w.message) for w in said], num_threads=num_threads, progress=progress
    )


def check_splits(
    path: str,
    kind: Kind,
    splits: Splits[Any],
    *,
    said: Sequence[str] = (),
    num_threads: int | None = None,
    progress: bool = False,
) -> DataReport:
    """:func:`check_data` of data that are open.

    Args:
        path: what they are called.
        kind: what they are for.
        splits: what there is.
        said: warnings that opening them gave.
        num_threads, progress: as there.
    """
    named = dict(splits.items())
    seen = {name: _SplitFacts() for name in named}
    same: dict[bytes, list[tuple[str, int]]] = {}
    threads = num_threads or min(usable_cores(), 8)
    for name, i, content, facts, objects in _progress(
        _read_all(named, threads), sum(map(len, named.values())), progress
    ):
        record = seen[name]
        if isinstance(facts, str):
            record.unreadable.append((named[name].sample_id(i), facts))
            continue
        record.widths.append(facts.width)
        record.heights.append(facts.height)
        record.modes[facts.mode] += 1
        record.formats[facts.format] += 1
        record.objects.append(objects)
        same.setdefault(content, []).append((name, i))

    reports = {name: _report(source, seen[name]) for name, source in named.items()}
    groups = [group for group in same.values() if len(group) > 1]
    within = [g for g in groups if len({name for name, _ in g}) < len(g)]
    across = [g for g in groups if len({name for name, _ in g}) > 1]
    conflicts = [g for g in groups if len({named[name].targets[i].tobytes() for name, i in g}) > 1]

    def listed(found: list[list[tuple[str, int]]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(f"{name}: {named[name].sample_id(i)}" for name, i in group) for group in found)

    return DataReport(
        path=path,
        layout=LAYOUTS[kind],
        classes=splits.classes,
        multi_label=splits.multi_label,
        splits=reports,
        duplicates_within=listed(within),
        duplicates_across=listed(across),
        conflicting_labels=listed(conflicts),
        problems=splits.problems,
        warnings=(
            *said,
            *_warnings(reports, len(within), len(across), len(conflicts), kind, splits),
        ),
    )


def _read_all(named: Mapping[str, Source], threads: int) -> Iterator[_Read]:
    """What was read of every image, in order."""
    jobs = iter([(name, i) for name, source in named.items() for i in range(len(source))])
    with ThreadPoolExecutor(threads) as pool:
        # In slices, since map() would queue a whole data set's results ahead of their reader.
        while chunk := list(islice(jobs, 64 * threads)):
            results = pool.map(lambda job: _read_one(named[job[0]], job[1]), chunk)
            for (name, i), (content, facts, objects) in zip(chunk, results, strict=True):
                yield name, i, content, facts, objects


def _read_one(source: Source, i: int) -> tuple[bytes, ImageFacts | str, int]:
    try:
        raw = source.raw(i)
        facts = image_facts(raw)  # first, since it refuses pipes, which would block
        return _content_hash(raw), facts, _count_objects(source, i)
    except UnreadableImage as error:
        return b"", error.reason, 0


def _count_objects(source: Source, i: int) -> int:
    """Masks of a picture that are not empty; 0 for data without masks. Raises UnreadableImage as training would."""
    if not isinstance(source, ObjectSource):
        return 0
    image, objects = source.pair(i)
    check_size(image, objects)
    return int((objects.areas > 0).sum())


def _content_hash(raw: ImageInput) -> bytes:
    """A hash of a file's bytes, or of the pixels of what never was a file."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(raw, str | os.PathLike):
        try:
            with open(raw, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
    elif isinstance(raw, Image.Image | np.ndarray):
        pixels = np.asarray(raw)
        digest.update(repr((pixels.shape, pixels.dtype.str)).encode() + pixels.tobytes())
    elif isinstance(raw, bytes | bytearray | memoryview):
        digest.update(raw)
    else:
        raise UnreadableImage(f"{type(raw).__name__} cannot be hashed")
    return digest.digest()


def _report(source: Source, seen: _SplitFacts) -> SplitReport:
    def range_of(values: list[int]) -> tuple[int, int, int]:
        return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)

    return SplitReport(
        samples=len(source),
        counts=dict(zip(source.classes, map(int, class_counts(source)), strict=True)),
        unlabelled=_without(source, seen),
        width=range_of(seen.widths),
        height=range_of(seen.heights),
        modes=dict(seen.modes.most_common()),
        formats=dict(seen.formats.most_common()),
        unreadable=tuple(seen.unreadable),
        captions=sum(len(source.captions(i)) for i in range(len(source))) if isinstance(source, CaptionSource) else 0,
        objects=range_of(seen.objects),
    )


def _without(source: Source, seen: _SplitFacts) -> int:
    """Images without what the task learns from."""
    if isinstance(source, CaptionSource):
        return sum(not source.captions(i) for i in range(len(source)))
    if isinstance(source, ObjectSource):
        return seen.objects.count(0)
    return sum(not source.has_label(i) for i in range(len(source))) if source.classes else 0


def _warnings(
    reports: dict[str, SplitReport], within: int, across: int, conflicts: int, kind: Kind, splits: Splits[Any]
) -> Iterator[str]:
    if splits.problems:
        yield f"{len(splits.problems)} files or entries are passed over"
    if splits.images_without_objects:
        yield f"train: {splits.images_without_objects} images have no object and are not trained on"
    if splits.empty_captions:
        yield f"{splits.empty_captions} captions have nothing written in them"
    missing = {"captions": "caption", "objects": "object"}.get(kind, "label")
    for name, split in reports.items():
        if split.unreadable:
            yield f"{name}: {len(split.unreadable)} of {split.samples} images cannot be read"
        if split.unlabelled:
            yield f"{name}: {split.unlabelled} images have no {missing}"
        counts = [n for n in split.counts.values() if n]
        if counts and max(counts) > IMBALANCE * min(counts):
            yield (
                f"{name}: classes have between {min(counts)} and {max(counts)} images; "
                "consider balanced sampling or class weights"
            )
        if empty := [c for c, n in split.counts.items() if n == 0]:
            yield f"{name}: {len(empty)} classes have no images: {', '.join(empty[:_SHOWN])}"
    if across:
        yield f"{across} images are in more than one split; scores on them mean little"
    if within:
        yield f"{within} images are there more than once"
    if conflicts:
        yield f"{conflicts} images are there under different labels"


def _progress(items: Iterator[Any], total: int, show: bool) -> Iterator[Any]:
    if not show:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description="reading images", total=total, console=Console(stderr=True))
