"""Readers of labelled images, and of images alone: what a path can be, and how it is read."""

from __future__ import annotations

import os
from typing import Any

from visionzoo.data.sources.base import Source, Splits, merged
from visionzoo.data.sources.folder import read_image_folders, read_split_folders, subfolders
from visionzoo.data.sources.manifest import read_manifest
from visionzoo.data.sources.paths import by_split, files_in, manifest_by_split, split_of_value
from visionzoo.data.sources.reading import ImageReading, LabelReading, Reader
from visionzoo.data.sources.rows import ENDINGS, is_table, manifests_in
from visionzoo.data.sources.shapes import ShapesSource, shapes_length, shapes_splits


def _digits(_path: str, _options: ImageReading) -> Source:
    from visionzoo.data.sources.digits import DigitsSource

    return DigitsSource()


def _shapes(path: str, options: ImageReading) -> dict[str, ShapesSource]:
    return shapes_splits(path, lambda length, start: ShapesSource(length, seed=options.seed, start=start))


def _torchvision(path: str, options: ImageReading) -> dict[str, Source]:
    from visionzoo.data.sources.torchvision_sets import open_torchvision

    return open_torchvision(path.removeprefix("torchvision:"), root=options.root, download=options.download)


def _tables(path: str) -> list[str]:
    """The parquet files or manifests that a path is, or has in it or in its ``data/``, where the hubs put them."""
    if os.path.isfile(path):
        return [path]
    for folder in filter(os.path.isdir, (path, os.path.join(path, "data"))):
        if found := files_in(folder, ".parquet") or manifests_in(folder):
            return found
    return []


def _is_parquet(path: str, _options: ImageReading) -> bool:
    return any(file.lower().endswith(".parquet") for file in _tables(path)[:1])


def _is_manifest(path: str, _options: ImageReading) -> bool:
    return any(is_table(file) for file in _tables(path)[:1])


def _columns(options: ImageReading) -> dict[str, Any]:
    label = {"label_column": options.label_column} if isinstance(options, LabelReading) else {"labelled": False}
    return {"image_column": options.image_column, **label}


def _parquet(path: str, options: ImageReading) -> dict[str, Source]:
    from visionzoo.data.sources.parquet import ParquetSource

    files = _tables(path)
    parts = {"train": files} if files == [path] else by_split(os.path.dirname(files[0]), files)
    return {split: ParquetSource(part, **_columns(options)) for split, part in parts.items()}


def _manifest(path: str, options: ImageReading) -> Splits[Source]:
    files = _tables(path)
    if files != [path]:
        parts = manifest_by_split(os.path.dirname(files[0]), files)
        return merged({split: _manifest(file, options) for split, file in parts.items()})
    named: dict[str, Source] = {}
    for value, source in read_manifest(path, **_columns(options)).items():
        split = split_of_value(value, path)
        if split in named:
            raise ValueError(f"{path}: cannot use the split {value!r}; there is another one for {split}")
        named[split] = source
    return Splits[Source]().with_splits(named)


def _is_folder(path: str, _options: ImageReading) -> bool:
    return os.path.isdir(path)


def _holds_classes(path: str, _options: ImageReading) -> bool:
    """Whether a folder has class folders, or a table that somebody took for labels."""
    return os.path.isdir(path) and bool(subfolders(path) or files_in(path, *ENDINGS, ".parquet"))


_ANY = (
    Reader("digits", lambda path, _: path == "digits", _digits),
    Reader("shapes", lambda path, _: shapes_length(path) is not None, _shapes),
    Reader("torchvision", lambda path, _: path.startswith("torchvision:"), _torchvision),
    Reader("parquet", _is_parquet, _parquet),
    Reader("manifest", _is_manifest, _manifest),
)
LABEL_READERS = (
    *_ANY,
    Reader("class folders", _is_folder, lambda path, _: read_split_folders(path), made_for=_holds_classes),
)
IMAGE_READERS = (*_ANY, Reader("folder", _is_folder, lambda path, _: read_image_folders(path)))
