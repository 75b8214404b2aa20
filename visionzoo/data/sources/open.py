"""The one entry: what is this path, and what are its splits?"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from visionzoo.data.sources.base import FilesSource, Source, Splits, Subset, class_counts, with_classes
from visionzoo.data.sources.folder import list_images, read_folder, subfolders
from visionzoo.data.sources.split import stratified_split

#: Names people give to a split. A file belongs to a split if its name starts with one of them.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SHAPES_SIZES = {"train": 2000, "val": 500}


class _Columns(NamedTuple):
    image: str | None
    label: str | None


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
        path: ``digits`` or ``shapes`` (built in); ``torchvision:CIFAR10``; a folder of class folders, with or without
            ``train``/``val``/``test`` above them; a parquet file or a folder of ``train*.parquet`` etc.; a CSV, TSV or
            JSONL manifest or a folder of ``train.csv`` etc.
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
    return _checked(str(path), named, tuple(classes) if classes is not None else None)


def open_unlabelled(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> FilesSource:
    """Images for prediction: a folder (searched to any depth), a file, or a list of files.

    Raises:
        FileNotFoundError: for a missing path.
        ValueError: for a folder without images, or an empty list.
    """
    if isinstance(paths, str | os.PathLike):
        path = os.fspath(paths)
        _must_exist(path)
        if os.path.isdir(path):
            found, ignored = list_images(path)
            if not found:
                raise ValueError(f"no images in {path} ({ignored} other files)")
            return FilesSource(path, found)
        return FilesSource("", [os.fsencode(path)])
    files = [os.fspath(path) for path in paths]
    if not files:
        raise ValueError("no images to predict: the list of paths is empty")
    for path in files:
        _must_exist(path)
    return FilesSource("", [os.fsencode(path) for path in files])


def _open_any(path: str, seed: int, table: _Columns, root: str | None, download: bool) -> dict[str, Source]:
    """Sources by split; a set without splits is all ``train``."""
    if path == "digits":
        from visionzoo.data.sources.digits import DigitsSource

        return {"train": DigitsSource()}
    if path == "shapes":
        from visionzoo.data.sources.shapes import ShapesSource

        train = SHAPES_SIZES["train"]
        return {
            "train": ShapesSource(train, seed=seed),
            "val": ShapesSource(SHAPES_SIZES["val"], seed=seed, start=train),
        }
    if path.startswith("torchvision:"):
        from visionzoo.data.sources.torchvision_sets import open_torchvision

        return open_torchvision(path.removeprefix("torchvision:"), root=root, download=download)
    _must_exist(path)
    return _open_folder(path, table) if os.path.isdir(path) else _open_file(path, table)


def _must_exist(path: str) -> None:
    if os.path.exists(path):
        return
    parent, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    near = difflib.get_close_matches(name, os.listdir(parent), n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(os.path.join(parent, n) for n in near)}?" if near else f"{parent} has no {name!r}"
    )
    raise FileNotFoundError(f"no such file or folder: {path}; {hint} (built-in sets: digits, shapes)")


def _open_file(path: str, table: _Columns) -> dict[str, Source]:
    from visionzoo.data.sources.manifest import ENDINGS, read_manifest
    from visionzoo.data.sources.parquet import ParquetSource

    if path.lower().endswith(".parquet"):
        return {"train": ParquetSource([path], image_column=table.image, label_column=table.label)}
    if path.lower().endswith(ENDINGS):
        groups = read_manifest(path, image_column=table.image, label_column=table.label)
        named: dict[str, Source] = {}
        for value, source in groups.items():
            split = _split_of(value) if value else "train"
            if split is None or split in named:
                known = ", ".join(n for names in SPLIT_NAMES.values() for n in names)
                raise ValueError(f"{path}: cannot use the split {value!r}; known are {known}")
            named[split] = source
        return named
    raise ValueError(f"{path} is not a data set; files can be .parquet or {', '.join(ENDINGS)}")


def _open_folder(path: str, table: _Columns) -> dict[str, Source]:
    from visionzoo.data.sources.manifest import ENDINGS
    from visionzoo.data.sources.parquet import ParquetSource

    for folder in (path, os.path.join(path, "data")):  # the hubs put their files into data/
        if not os.path.isdir(folder):
            continue
        files = sorted(os.path.join(folder, n) for n in os.listdir(folder) if not n.startswith("."))
        if tables := [f for f in files if f.lower().endswith(".parquet")]:
            return {
                split: ParquetSource(part, image_column=table.image, label_column=table.label)
                for split, part in _by_split(folder, tables).items()
            }
        if manifests := [f for f in files if f.lower().endswith(ENDINGS) and _split_of(os.path.basename(f))]:
            named: dict[str, Source] = {}
            for split, part in _by_split(folder, manifests).items():
                if len(part) > 1:
                    raise ValueError(f"{folder} has several manifests for {split}: {', '.join(part)}; name one of them")
                (named[split],) = _open_file(part[0], table).values()
            return named
    return _open_class_folders(path)


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


def _split_of(name: str) -> str | None:
    """The split that a file name or a value of a split column belongs to."""
    stem = name.lower().split(".")[0]
    words = stem.replace("_", "-").split("-")
    return next((split for split, names in SPLIT_NAMES.items() if words[0] in names), None)


def _by_split(folder: str, files: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(_split_of(os.path.basename(file)) or "", []).append(file)
    other = groups.pop("", [])
    if other and groups:
        names = ", ".join(os.path.basename(f) for f in other[:5])
        raise ValueError(
            f"{folder}: cannot tell which split {names} belongs to; file names start with train, val or test"
        )
    return groups or {"train": other}


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
