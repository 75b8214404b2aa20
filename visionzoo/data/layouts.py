"""What a data set is for, by how it lies there: classes, captions, masks, or images alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.folder import subfolders
from visionzoo.data.sources.open import open_images, open_splits
from visionzoo.data.sources.open_captions import holds_captions, open_captions
from visionzoo.data.sources.open_objects import holds_objects, open_objects
from visionzoo.data.sources.rows import ENDINGS

Layout = Literal["classes", "images with captions", "images with masks", "images"]


@dataclass(frozen=True, kw_only=True)
class OpenLayout:
    """A data set opened as the task that it is for opens it."""

    kind: Layout
    named: Mapping[str, Source]  #: by split
    classes: tuple[str, ...] = ()
    multi_label: bool = False
    problems: tuple[tuple[str, str], ...] = ()  #: (file, what is wrong with it) of what was passed over
    empty_captions: int = 0
    left_out: int = 0  #: training images without an object, which segmentation leaves out


def open_layout(path: str, *, val_path: Any = None, val_fraction: float | None = None, **options: Any) -> OpenLayout:
    """Open a data set, whatever it is.

    COCO's and SA-1B's annotations and ``images/`` with ``masks/`` are for segmentation; shards, captions beside images
    and tables with captions and no labels for CLIP; a folder of images without subfolders for MAE; all else has
    classes.

    Args:
        path, val_path, val_fraction: see :func:`visionzoo.data.sources.open.open_splits`.
        options: of that function, for data with classes.

    Raises:
        FileNotFoundError, ValueError: as the function that the task calls.
    """
    other = None if val_path is None else os.fspath(val_path)
    if holds_objects(path):
        found = open_objects(path, val_path=other, val_fraction=val_fraction)
        return OpenLayout(
            kind="images with masks",
            named=dict(_once(found.named)),
            problems=found.problems,
            left_out=found.without_objects,
        )
    if holds_captions(path):
        texts = open_captions(path, val_path=other, val_fraction=val_fraction, templates=("{}",))
        return OpenLayout(
            kind="images with captions",
            named=dict(_once(texts.named)),
            problems=texts.problems,
            empty_captions=texts.empty_captions,
        )
    if os.path.isdir(path) and not subfolders(path) and not _has_tables(path):
        return OpenLayout(kind="images", named=dict(open_images(path, val_fraction=0.0).items()))
    splits: Splits = open_splits(path, val_path=val_path, val_fraction=val_fraction, **options)
    return OpenLayout(
        kind="classes", named=dict(splits.items()), classes=splits.classes, multi_label=splits.multi_label
    )


def _once(named: Mapping[str, Source]) -> list[tuple[str, Source]]:
    """Splits without those that another one serves as well."""
    return Splits(train=named.get("train"), val=named.get("val"), test=named.get("test")).items()


def _has_tables(path: str) -> bool:
    return any(name.lower().endswith((*ENDINGS, ".parquet")) for name in os.listdir(path))
