"""Features of a data set as a parquet table: one row for each image, for search, clustering and linear probes.

Legend: N images, D width of the pooled features.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from visionzoo.backbones import create_backbone
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.folder import list_images, open_unlabelled, subfolders
from visionzoo.data.sources.open import open_data
from visionzoo.files import atomic_path
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.inference.device import resolve_device
from visionzoo.inference.named import weights_of
from visionzoo.inference.stream import Output, Stream, Unreadable
from visionzoo.weights.local import local_source

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class EmbedReport:
    """What :func:`embed_to_parquet` did."""

    out: Path
    rows: int  #: images embedded
    width: int  #: D
    unreadable: tuple[Unreadable, ...]  #: images that were left out


def embed_to_parquet(
    path: str | Path,
    model: str | Path | ImageClassifier,
    out: str | Path,
    *,
    weights: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    labels: bool = True,
    batch_size: int = 32,
    device: str | torch.device | None = None,
) -> EmbedReport:
    """Write the pooled features of every image of a data set.

    Columns: ``id`` (path, or file and row), ``split``, ``label`` (null where unknown; a list for multi-label data), and
    ``embedding``, a list of D float32. Model and preprocessing stand in the schema's metadata. Unreadable images are
    left out and reported. The table appears whole or not at all.

    Args:
        path: a folder of images, or any data source that ``--data.path`` takes.
        model: a run folder, the name of a backbone, or a classifier.
        out: the parquet file.
        weights: for a backbone: what ``create_backbone`` takes, or ``random``; it must be given.
        image_size: for a backbone: pixels; None for the size it was trained at.
        labels: False takes the images below a folder as they are found, subfolders being no classes.
        batch_size: images sent through the model at a time.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError: if there are no such data.
        ValueError: for another table that ``out`` would replace, data without images, an unknown model, a backbone
            without ``weights``, or ``weights`` or ``image_size`` given for a run.
    """
    import pyarrow.parquet as pq

    if os.path.isfile(out) and b"visionzoo.preprocess" not in (pq.read_schema(out).metadata or {}):
        raise ValueError(f"{out} is there and was not written by embed; it may be data: give another name")
    splits = _open(str(path), labels)
    embedder = _Embedder(model, weights, image_size, device)
    described = {
        "model": embedder.name,
        "weights": weights or "",
        "preprocess": json.dumps(embedder.preprocess.to_dict()),
    }
    schema = _schema(embedder.width, splits[0][1].multi_label, described)
    unreadable: list[Unreadable] = []
    rows = 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for split, source in splits:
            stream = Stream(embedder, embedder.preprocess, embedder.device)
            for output in stream.run(len(source), source.read, source.sample_id, batch_size, split or "images"):
                unreadable += output.unreadable
                rows += len(output.positions)
                if output.positions:
                    writer.write_table(_table(output, split, source, schema))
    return EmbedReport(Path(out), rows, embedder.width, tuple(unreadable))


class _Embedder:
    """(B, 3, H, W) normalised images -> (B, D), from a run or a bare backbone."""

    def __init__(
        self,
        model: str | Path | ImageClassifier,
        weights: str | None,
        image_size: int | tuple[int, int] | None,
        device: str | torch.device | None,
    ) -> None:
        if not isinstance(model, ImageClassifier):
            source: str | Path = local_source(model, "classify")
            model = ImageClassifier.load(source, device) if _is_run(source) else source
        self.name = model.name if isinstance(model, ImageClassifier) else str(model)
        if isinstance(model, ImageClassifier):
            if weights is not None or image_size is not None:
                raise ValueError(f"{self.name} has weights and an image size of its own; leave the options out")
            self.module: nn.Module = model.model
            self.forward: Callable[[Tensor], Tensor] = model.model.embed_images  # type: ignore[assignment]
            self.preprocess = model.preprocess
        else:
            backbone = create_backbone(self.name, weights=weights_of(self.name, weights), image_size=image_size)
            backbone.eval().to(resolve_device(device))
            self.module = backbone
            self.forward = lambda images: backbone(images).pooled
            self.preprocess = backbone.preprocess
        self.device = next(self.module.parameters()).device
        self.width = int(self.module.pooled_dim)  # type: ignore[arg-type]

    def __call__(self, images: Tensor) -> Tensor:
        return self.forward(images)


def _is_run(model: str | Path) -> bool:
    return isinstance(model, Path) or model.startswith("timm:") or os.path.isdir(model)


def _open(path: str, labels: bool) -> list[tuple[str, Source]]:
    """(split, source) of everything in ``path``; a folder of images alone is one source under an empty name."""
    if not labels or _holds_images_alone(path):
        return [("", open_unlabelled(path))]
    return open_data(path).items()


def _holds_images_alone(path: str) -> bool:
    return os.path.isdir(path) and not subfolders(path) and bool(list_images(path)[0])


def _schema(width: int, multi_label: bool, described: dict[str, str]) -> pa.Schema:
    import pyarrow as pa

    label = pa.list_(pa.string()) if multi_label else pa.string()
    columns = [
        ("id", pa.string()),
        ("split", pa.string()),
        ("label", label),
        ("embedding", pa.list_(pa.float32(), width)),
    ]
    return pa.schema(columns, metadata={f"visionzoo.{k}": v for k, v in described.items()})


def _table(output: Output, split: str, source: Source, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    numbers = output.values.float().numpy().ravel()  # numpy has no bfloat16
    values = pa.FixedSizeListArray.from_arrays(numbers, schema.field("embedding").type.list_size)
    columns: list[Any] = [
        pa.array([source.sample_id(i) for i in output.positions], pa.string()),
        pa.array([split or None] * len(output.positions), pa.string()),
        pa.array([_label(source, i) for i in output.positions], schema.field("label").type),
        values,
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _label(source: Source, i: int) -> str | list[str] | None:
    target = source.targets[i]
    if source.multi_label:
        return None if target[0] < 0 else [source.classes[k] for k in np.flatnonzero(target)]
    return None if target < 0 else source.classes[int(target)]
