"""The one way to open data: which reader takes a path, and what its splits are."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from visionzoo.data.sources.base import (
    Source,
    Splits,
    class_counts,
    forget_labels,
    with_classes,
)
from visionzoo.data.sources.caption_readers import CAPTION_READERS
from visionzoo.data.sources.captions import CaptionSource, captions_from_classes, class_templates
from visionzoo.data.sources.label_maps import LabelMapSource
from visionzoo.data.sources.label_readers import IMAGE_READERS, LABEL_READERS
from visionzoo.data.sources.object_readers import OBJECT_READERS
from visionzoo.data.sources.objects import ObjectSource
from visionzoo.data.sources.paths import must_exist
from visionzoo.data.sources.reading import (
    CaptionReading,
    ImageReading,
    Kind,
    LabelReading,
    ObjectReading,
    Reader,
    ReadOptions,
)
from visionzoo.data.sources.rows import ENDINGS
from visionzoo.data.sources.shapes import shapes_length
from visionzoo.data.sources.split import hold_out
from visionzoo.text import nfc

#: The readers of each kind of data; the first that recognises a path reads it.
READERS: dict[Kind, tuple[Reader, ...]] = {
    "objects": OBJECT_READERS,
    "captions": CAPTION_READERS,
    "labels": LABEL_READERS,
    "images": IMAGE_READERS,
}
#: Those of other programs, which are asked first.
_REGISTERED: dict[Kind, tuple[Reader, ...]] = dict.fromkeys(READERS, ())


def register_reader(
    kind: Kind,
    name: str,
    recognises: Callable[[str, Any], bool],
    read: Callable[[str, Any], Any],
) -> None:
    """Add a reader of data, for ``--data.path`` and :func:`open_data`. It is asked before those that are built in.

    Args:
        kind: ``labels``, ``images``, ``captions`` or ``objects``. A reader of labels serves ``images`` too (labels are
            forgotten), and captions (made of the classes).
        name: of the reader, such as ``lmdb``.
        recognises: called with the path and the options of reading (:mod:`visionzoo.data.sources.reading`); whether
            this reader takes it. The path may be any word: nobody has looked whether there is such a file.
        read: called with the same; gives a :class:`visionzoo.data.sources.base.Source` (for captions and objects a
            :class:`CaptionSource` or an :class:`ObjectSource`), several of them by split (``train``, ``val``,
            ``test``), or :class:`visionzoo.data.sources.base.Splits`. Splits that are missing are completed.

    Example:
        >>> def read_faces(path, options):
        ...     names, targets = parse(path)  # file names as bytes, (N,) int64
        ...     return FilesSource(os.path.dirname(path), names, targets, classes=("ann", "bob"))
        >>> register_reader("labels", "faces", lambda path, options: path.endswith(".faces"), read_faces)

    Raises:
        ValueError: for an unknown kind, or a name that is taken.
    """
    if name in [reader.name for reader in (*_registered(kind), *READERS[kind])]:
        raise ValueError(f"a reader of {kind} named {name!r} is registered already; choose another name")
    _REGISTERED[kind] += (Reader(name, recognises, read),)


def _registered(kind: Kind) -> tuple[Reader, ...]:
    if kind not in READERS:
        raise ValueError(f"kind={kind!r} of data is unknown; use one of {', '.join(READERS)}")
    return _REGISTERED[kind] + (_REGISTERED["labels"] if kind == "images" else ())


def open_data(
    path: str | os.PathLike[str],
    kind: Kind = "labels",
    options: ReadOptions | None = None,
    *,
    val_path: str | os.PathLike[str] | None = None,
    val_fraction: float | None = None,
    **changes: Any,
) -> Splits[Any]:
    """Open a data set, whatever it is. Labels, captions and annotations of COCO are read; images are not.

    Args:
        path: what one of the readers of this kind recognises; :class:`visionzoo.data.classify.ClassifyData`
            and its siblings say what is built in. Captions are also made of anything with classes, by ``templates``.
        kind: what is to be learned from.
        options: how it is read, of the class that belongs to the kind, see :mod:`visionzoo.data.sources.reading`; None
            for the defaults.
        val_path: a source of its own for validation, of the same kind.
        val_fraction: where there is no validation split, the share of the training images to hold out, stratified where
            there are classes. None: use the test split if there is one, otherwise hold out 0.2 of labelled images, 0.1
            of those with objects, 0.05 of others. 1 makes everything validation, 0 has none.
        changes: single options, in the place of those in ``options``.

    Raises:
        FileNotFoundError: for a missing path; the message suggests near names.
        ValueError: for a path that holds nothing readable or nothing to learn from, an option that does not fit, or
            classes that do not match between splits.
    """
    path = os.fspath(path)
    _registered(kind)  # refuses an unknown kind
    rules = _RULES[kind]
    options = replace(options or rules.options(), **changes)
    if kind == "images" and val_fraction is not None and not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must be in [0, 1)")
    if (holdout := getattr(options, "holdout", None)) is not None and shapes_length(path) is None:
        raise ValueError(f"holdout={holdout!r} is for the built-in set shapes, not for {path}")
    found = _read(path, kind, options)
    if found is None:
        splits = open_data(path, val_path=val_path, val_fraction=val_fraction, seed=options.seed)
        return _captioned(splits, options)
    if val_path is not None:
        other = _read(os.fspath(val_path), kind, options)
        if other is None:
            other = _captioned(Splits(val=open_evaluation(val_path, seed=options.seed)), options)
        found = replace(
            found,
            val=other.to_evaluate,
            problems=(*found.problems, *other.problems),
            empty_captions=found.empty_captions + other.empty_captions,
        )
    named = rules.usable(found.named, path, options)
    if val_fraction is not None and "val" in named:
        warnings.warn(
            f"val_fraction={val_fraction} is not used: {val_path or path} has validation images", stacklevel=2
        )
    named = hold_out(named, val_fraction, options.seed, default=rules.held_out)
    return rules.checked(found.with_splits(named), path, options)


def open_evaluation(path: str | os.PathLike[str], *, seed: int = 0) -> Source:
    """The labelled images of a data set to evaluate on: its validation split, else its test split, else all of it.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for a path that holds nothing readable, or no labels.
    """
    found = _read(os.fspath(path), "labels", LabelReading(seed=seed))
    assert found is not None
    if not _has_labels(found.to_evaluate):
        raise ValueError(f"{path} has no labels")
    return found.to_evaluate


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """What data were made for, by how they lie there.

    COCO's and SA-1B's annotations and ``images/`` with ``masks/`` are for segmentation; shards, captions beside images
    and tables with captions and no labels for CLIP; a folder of images without subfolders for MAE; all else has labels.
    """
    path = os.fspath(path)
    for table in (_REGISTERED, READERS):
        for kind, readers in table.items():
            options = _RULES[kind].options()
            if any((reader.made_for or reader.recognises)(path, options) for reader in readers):
                return kind
    return "labels"


def _read(path: str, kind: Kind, options: ReadOptions) -> Splits[Any] | None:
    """What the first reader that recognises a path gives; None for captions that can only be made of classes."""
    for reader in (*_registered(kind), *READERS[kind]):
        if reader.recognises(path, options):
            return _as_splits(reader.read(path, options), kind, f"{path}: the reader {reader.name!r}")
    if kind == "captions":
        return None
    must_exist(path)
    if kind == "objects":
        raise ValueError(f"{path} is not a set of masks; a file can be COCO's instance .json")
    raise ValueError(f"{path} is not a data set; files can be .parquet or {', '.join(ENDINGS)}")


def _as_splits(given: Any, kind: Kind, who: str) -> Splits[Any]:
    """What a reader gave, checked: programs register readers of their own."""
    if isinstance(given, Source):
        given = Splits(train=given)
    elif isinstance(given, Mapping) and given.keys() <= {"train", "val", "test"}:
        given = Splits(**given)
    wanted = _RULES[kind].source
    if not isinstance(given, Splits) or not given.named:
        raise ValueError(f"{who} gave {given!r:.80}; need a source, or several by split: train, val, test")
    if wrong := [type(source).__name__ for source in given.named.values() if not isinstance(source, wanted)]:
        raise ValueError(f"{who} gave a {wrong[0]}; {kind} need a {wanted.__name__}")
    return given


# What each kind of data asks for: before splits are completed (``usable``), and of the whole (``checked``).


def _with_labels(named: Mapping[str, Source], path: str, _options: LabelReading) -> dict[str, Source]:
    labelled = {name: source for name, source in named.items() if _has_labels(source)}
    if not labelled:
        raise ValueError(f"{path} has no labels; for images without labels use --data.predict_path")
    return labelled


def _has_labels(source: Source) -> bool:
    return bool((source.targets >= 0).any())


def _with_one_class_list(splits: Splits[Source], path: str, options: LabelReading) -> Splits[Source]:
    """Bring all splits to one list of classes, and refuse what cannot be learned from."""
    named = splits.named
    reference = next(iter(named))
    wanted = tuple(map(nfc, options.classes)) if options.classes else named[reference].classes
    present = [c for c, n in zip(named[reference].classes, class_counts(named[reference]), strict=True) if n]
    if not named[reference].multi_label and (len(wanted) < 2 or (reference == "train" and len(present) < 2)):
        raise ValueError(
            f"{path} has one class, {present[0]!r}; classification needs two or more "
            "(is this a class folder itself, or a folder one level too high?)"
        )
    if len({source.multi_label for source in named.values()}) > 1:
        raise ValueError(
            f"{path}: some splits have one label per image and others have lists; use lists in all of them"
        )
    aligned: dict[int, Source] = {}
    for name, source in named.items():
        aligned.setdefault(id(source), with_classes(source, wanted, f"{path}: {name}"))
    for name, source in named.items():
        missing = [c for c, n in zip(wanted, class_counts(aligned[id(source)]), strict=True) if n == 0]
        if missing:
            warnings.warn(
                f"{path}: {name} has no images of {len(missing)} of {len(wanted)} classes: {', '.join(missing[:8])}",
                stacklevel=3,
            )
    return splits.with_splits({name: aligned[id(source)] for name, source in named.items()})


def _without_labels(named: Mapping[str, Source], _path: str, _options: ImageReading) -> dict[str, Source]:
    return {name: forget_labels(source) for name, source in named.items()}


def _captioned(splits: Splits[Source], options: ReadOptions) -> Splits[CaptionSource]:
    """Captions made of classes. One caption per image suffices to evaluate."""
    assert isinstance(options, CaptionReading)
    templates = class_templates(options.templates)
    named = splits.named.items()
    made = {n: captions_from_classes(source, templates if n == "train" else templates[:1]) for n, source in named}
    return Splits[CaptionSource]().with_splits(made)


def _with_captions(splits: Splits[CaptionSource], path: str, _options: CaptionReading) -> Splits[CaptionSource]:
    for split, source in splits.named.items():
        if not any(len(source.captions(i)) for i in range(len(source))):
            raise ValueError(f"{path}: none of the {len(source)} images of {split} has a caption")
    return splits


def _with_plausible_maps(
    named: Mapping[str, ObjectSource], path: str, options: ObjectReading
) -> dict[str, ObjectSource]:
    """Warn of what is odd in label maps, once for each kind of oddity."""
    maps = [source for source in named.values() if isinstance(source, LabelMapSource)]
    if options.void is not None and not maps:
        raise ValueError(f"void={options.void} is for label maps (images/ and masks/), and {path} has none")
    for text in dict.fromkeys(text for source in maps for text in source.look()):
        warnings.warn(f"{path}: {text}", stacklevel=3)
    return dict(named)


def _with_objects(splits: Splits[ObjectSource], path: str, _options: ObjectReading) -> Splits[ObjectSource]:
    """Leave out training images that are known to have no object."""
    train = splits.train
    if train is None or train.object_counts is None:
        return splits
    having = np.flatnonzero(train.object_counts)
    if not len(having):
        listed = "".join(f"; {reason}" for _, reason in splits.problems[:3])
        raise ValueError(f"{path}: none of the {len(train)} training images has an object{listed}")
    if left_out := len(train) - len(having):
        return replace(splits, train=train.take(having), images_without_objects=left_out)
    return splits


class _Rules(NamedTuple):
    options: type[ReadOptions]
    source: type[Any]
    held_out: float  #: share of the training images held out where the data have no validation split
    usable: Callable[[Mapping[str, Any], str, Any], dict[str, Any]]
    checked: Callable[[Splits[Any], str, Any], Splits[Any]]


_RULES: dict[Kind, _Rules] = {
    "labels": _Rules(LabelReading, Source, 0.2, _with_labels, _with_one_class_list),
    "images": _Rules(ImageReading, Source, 0.05, _without_labels, lambda splits, *_: splits),
    "captions": _Rules(CaptionReading, CaptionSource, 0.05, lambda named, *_: dict(named), _with_captions),
    "objects": _Rules(ObjectReading, ObjectSource, 0.1, _with_plausible_maps, _with_objects),
}
