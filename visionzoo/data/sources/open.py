"""The one entry: what is this path, and what are its splits?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from visionzoo.data.images import image_extensions
from visionzoo.data.sources.base import (
    FilesSource,
    Source,
    Splits,
    Subset,
    class_counts,
    forget_labels,
    with_classes,
)
from visionzoo.data.sources.folder import list_images, not_read, read_folder, subfolders, warn_not_read
from visionzoo.data.sources.paths import SPLIT_NAMES, by_split, must_exist, split_folders, split_of
from visionzoo.data.sources.rows import ENDINGS, is_table
from visionzoo.data.sources.shapes import VAL_LENGTH, ShapesSource, shapes_length
from visionzoo.data.sources.split import random_split, stratified_split
from visionzoo.text import nfc


class _Columns(NamedTuple):
    image: str | None
    label: str | None
    labelled: bool = True  #: False where nobody asks for labels


def open_splits(
    path: str | os.PathLike[str],
    *,
    val_path: str | os.PathLike[str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    root: str | None = None,
    download: bool = False,
) -> Splits:
    """Open a labelled data set, whatever it is. Labels are read, images are not.

    Args:
        path: ``digits`` or ``shapes`` (built in; ``shapes:N``: N training pictures); ``torchvision:CIFAR10``; a folder
            of class folders, with or without ``train``/``val``/``test`` above them; a parquet file or a folder of
            ``train*.parquet`` etc.; a CSV, TSV or JSONL manifest or a folder of ``train.csv`` etc.
        val_path: a source of its own for validation, of any of these kinds.
        val_fraction: where there is no validation split, the share of the training images to hold out, stratified.
            None: use the test split if there is one, otherwise hold out 0.2. 1 makes everything validation, 0 has none.
        seed: of the hold-out, and of ``shapes``.
        classes: class names in the order wanted; None for the data's own.
        image_column, label_column: columns of tables with unusual names.
        root: folder of torchvision's sets; None for the user's cache.
        download: let torchvision download.

    Raises:
        FileNotFoundError: for a missing path; the message suggests near names.
        ValueError: for a path that holds nothing readable, an empty class, labels out of range, class sets that do not
            match between splits, or fewer than two classes.
    """
    table = _Columns(image_column, label_column)
    named = _open_any(os.fspath(path), seed, table, root, download)
    if val_path is not None:
        other = _open_any(os.fspath(val_path), seed, table, root, download)
        named["val"] = other.get("val") or other.get("test") or other["train"]
    named = {name: source for name, source in named.items() if _has_labels(source)}
    if not named:
        raise ValueError(f"{path} has no labels; for images without labels use --data.predict_path")
    if val_fraction is not None and "val" in named:
        warnings.warn(
            f"val_fraction={val_fraction} is not used: {val_path or path} has validation images", stacklevel=2
        )
    if "train" in named and "val" not in named and ("test" not in named or val_fraction is not None):
        kept, held = stratified_split(named["train"].targets, 0.2 if val_fraction is None else val_fraction, seed)
        whole = named.pop("train")
        named |= {name: Subset(whole, part) for name, part in (("train", kept), ("val", held)) if len(part)}
    elif "val" not in named and "test" in named:
        named["val"] = named["test"]
    return _checked(str(path), named, tuple(map(nfc, classes)) if classes is not None else None)


def open_images(
    path: str | os.PathLike[str],
    *,
    val_path: str | os.PathLike[str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    image_column: str | None = None,
    root: str | None = None,
    download: bool = False,
) -> Splits:
    """Open images of any source that :func:`open_splits` takes, and of folders without classes; labels are forgotten.

    Args:
        path: as for :func:`open_splits`, or a folder with images at any depth.
        val_path: images of their own for validation.
        val_fraction: where there is no validation split, the share of the training images to hold out. None for 0.05;
            0 holds none out.
        seed: of the hold-out.
        image_column: column of tables with unusual names.
        root, download: as for :func:`open_splits`.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for a path without images, or a share outside [0, 1).
    """
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must be in [0, 1)")
    table = _Columns(image_column, None, labelled=False)
    named = _open_any(os.fspath(path), seed, table, root, download)
    if val_path is not None:
        other = _open_any(os.fspath(val_path), seed, table, root, download)
        named["val"] = other.get("val") or other.get("test") or other["train"]
    named = {name: forget_labels(source) for name, source in named.items()}
    if val_fraction is not None and "val" in named:
        warnings.warn(
            f"val_fraction={val_fraction} is not used: {val_path or path} has validation images", stacklevel=2
        )
    if "val" not in named and "test" in named and val_fraction is None:
        named["val"] = named["test"]
    elif "val" not in named and "train" in named:
        kept, held = random_split(len(named["train"]), 0.05 if val_fraction is None else val_fraction, seed)
        whole = named.pop("train")
        named |= {name: Subset(whole, part) for name, part in (("train", kept), ("val", held)) if len(part)}
    return Splits(train=named.get("train"), val=named.get("val"), test=named.get("test"))


def open_evaluation(path: str | os.PathLike[str], *, seed: int = 0) -> Source:
    """The labelled images of a data set to evaluate on: its validation split, else its test split, else all of it.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for a path that holds nothing readable, or no labels.
    """
    named = _open_any(os.fspath(path), seed, _Columns(None, None), None, False)
    source = named.get("val") or named.get("test") or named["train"]
    if not _has_labels(source):
        raise ValueError(f"{path} has no labels")
    return source


def class_folders(path: str) -> dict[str, str]:
    """Name of each class -> its folder, in what :func:`open_evaluation` reads in a folder of images.

    Empty where its subfolders do not look like classes: fewer than two, images beside them, or one without images.
    """
    splits = split_folders(path)
    parts = [splits[split] for split in ("val", "test", "train") if split in splits and subfolders(splits[split])]
    below = parts[0] if parts else path
    names = subfolders(below)
    with os.scandir(below) as entries:
        loose = any(e.is_file() and os.path.splitext(e.name)[1].lower() in image_extensions() for e in entries)
    if len(names) < 2 or loose or not all(list_images(os.path.join(below, name))[0] for name in names):
        return {}
    return {name: os.path.join(below, name) for name in names}


def open_unlabelled(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> FilesSource:
    """Images for prediction: a folder (searched to any depth), a file, or a list of files.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for a folder without images, or an empty list.
    """
    if isinstance(paths, str | os.PathLike):
        path = os.fspath(paths)
        must_exist(path)
        if os.path.isdir(path):
            found, ignored = list_images(path)
            if not found:
                raise ValueError(f"no images in {path} ({not_read(0, ignored) or f'{ignored.total()} other files'})")
            warn_not_read(path, len(found), ignored)
            return FilesSource(path, found)
        return FilesSource("", [os.fsencode(path)])
    files = [os.fspath(path) for path in paths]
    if not files:
        raise ValueError("no images to predict: the list of paths is empty")
    for path in files:
        must_exist(path)
    return FilesSource("", [os.fsencode(path) for path in files])


def _open_any(path: str, seed: int, table: _Columns, root: str | None, download: bool) -> dict[str, Source]:
    """Sources by split; a set without splits is all ``train``."""
    if path == "digits":
        from visionzoo.data.sources.digits import DigitsSource

        return {"train": DigitsSource()}
    if (length := shapes_length(path)) is not None:
        return {"train": ShapesSource(length, seed=seed), "val": ShapesSource(VAL_LENGTH, seed=seed, start=length)}
    if path.startswith("torchvision:"):
        from visionzoo.data.sources.torchvision_sets import open_torchvision

        return open_torchvision(path.removeprefix("torchvision:"), root=root, download=download)
    must_exist(path)
    return _open_folder(path, table) if os.path.isdir(path) else _open_file(path, table)


def _open_file(path: str, table: _Columns) -> dict[str, Source]:
    from visionzoo.data.sources.manifest import read_manifest
    from visionzoo.data.sources.parquet import ParquetSource

    if path.lower().endswith(".parquet"):
        return {
            "train": ParquetSource([path], image_column=table.image, label_column=table.label, labelled=table.labelled)
        }
    if is_table(path):
        groups = read_manifest(path, image_column=table.image, label_column=table.label, labelled=table.labelled)
        named: dict[str, Source] = {}
        for value, source in groups.items():
            split = split_of(value) if value else "train"
            if split is None or split in named:
                known = ", ".join(n for names in SPLIT_NAMES.values() for n in names)
                raise ValueError(f"{path}: cannot use the split {value!r}; known are {known}")
            named[split] = source
        return named
    raise ValueError(f"{path} is not a data set; files can be .parquet or {', '.join(ENDINGS)}")


def _open_folder(path: str, table: _Columns) -> dict[str, Source]:
    from visionzoo.data.sources.parquet import ParquetSource

    for folder in (path, os.path.join(path, "data")):  # the hubs put their files into data/
        if not os.path.isdir(folder):
            continue
        files = sorted(os.path.join(folder, n) for n in os.listdir(folder) if not n.startswith("."))
        if tables := [f for f in files if f.lower().endswith(".parquet")]:
            return {
                split: ParquetSource(part, image_column=table.image, label_column=table.label, labelled=table.labelled)
                for split, part in by_split(folder, tables).items()
            }
        if manifests := [f for f in files if f.lower().endswith(ENDINGS) and split_of(os.path.basename(f))]:
            named: dict[str, Source] = {}
            for split, part in by_split(folder, manifests).items():
                if len(part) > 1:
                    raise ValueError(f"{folder} has several manifests for {split}: {', '.join(part)}; name one of them")
                (named[split],) = _open_file(part[0], table).values()
            return named
    return _open_class_folders(path) if table.labelled else _open_image_folders(path)


def _open_image_folders(path: str) -> dict[str, Source]:
    """Images at any depth: below split folders, or all of them. Class folders mean nothing here."""
    present = {name.lower(): name for name in subfolders(path)}
    named: dict[str, Source] = {}
    for split, names in SPLIT_NAMES.items():
        name = next((present[n] for n in names if n in present), None)
        if name is not None:
            named[split] = open_unlabelled(os.path.join(path, name))
    return named if "train" in named else {"train": open_unlabelled(path)}


def _open_class_folders(path: str) -> dict[str, Source]:
    """Class folders under split folders, or one tree of them. A folder ``train`` with no folders inside is a class."""
    present = {name.lower(): name for name in subfolders(path)}
    named: dict[str, Source] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            folder = os.path.join(path, present.get(name, ""))
            if name in present and subfolders(folder) and split not in named:
                named[split] = read_folder(folder)
    spare = set(present) - {name for names in SPLIT_NAMES.values() for name in names}
    if named and spare:
        warnings.warn(
            f"{path}: beside {', '.join(named)}, these folders are not read: {sorted(spare)[:8]}", stacklevel=2
        )
    return named or {"train": read_folder(path)}


def _has_labels(source: Source) -> bool:
    return bool((source.targets >= 0).any())


def _checked(path: str, named: dict[str, Source], classes: tuple[str, ...] | None) -> Splits:
    """Bring all splits to one list of classes, and refuse what cannot be learned from."""
    reference = "train" if "train" in named else next(iter(named))
    wanted = classes or named[reference].classes
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
    splits = {name: aligned[id(source)] for name, source in named.items()}
    for name, source in splits.items():
        missing = [c for c, n in zip(wanted, class_counts(source), strict=True) if n == 0]
        if missing:
            warnings.warn(
                f"{path}: {name} has no images of {len(missing)} of {len(wanted)} classes: {', '.join(missing[:8])}",
                stacklevel=3,
            )
    return Splits(train=splits.get("train"), val=splits.get("val"), test=splits.get("test"))
