"""The data set without what was found, as ``fit`` and the tasks read it, and with the labels that were suggested.

Images that lie in files are named in manifests. Others are written into parquet files, with captions into shards,
encoded as they were.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionzoo.curation.findings import Findings
from visionzoo.curation.instances import Parts, write_instances
from visionzoo.data.images import image_extensions
from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.captions import CaptionSource
from visionzoo.data.sources.reading import Kind
from visionzoo.files import atomic_path, write_csv

#: Without the images of these lists. Odd ones may be what a model most needs to see: they are for a person to judge.
LEFT_OUT = ("unreadable", "leak", "twin", "wrong label", "empty")
#: Captions and masks that go while their image stays. Other masks may be right: an object can be cut off, or small.
PARTS = ("caption", "empty mask", "mask twice")
#: Names of what is written, without their endings.
CLEAN, SUGGESTED, NEXT = "clean", "suggested", "label_next"
#: Endings of formats that are not called so.
_ENDINGS = {"MPO": "jpg", "JPEG2000": "jp2"}
#: Images of a shard.
_SHARD = 10_000


def write_clean(folder: Path, splits: Splits[Any], kind: Kind, found: Findings) -> list[Path]:
    """Write the data set twice where it has labels: without the bad images, and with other labels in their place.

    Args:
        folder: where.
        splits: of the data.
        kind: of the data. Masks are written as COCO's instance files.
        found: what is wrong with them.

    Returns:
        the files and folders that were written.
    """
    _forget(folder)
    written: list[Path] = []
    if found.label_next:
        write_csv(folder / f"{NEXT}.csv", ("image",), [[os.path.abspath(name)] for name in found.label_next])
        written.append(folder / f"{NEXT}.csv")
    bad = {(f.split, f.place) for f in found.findings if f.reason in LEFT_OUT}
    labels = {(f.split, f.place): f.suggestion for f in found.findings if f.reason == "wrong label"}
    parts: Parts = defaultdict(set)
    for one in found.findings:
        if one.reason in PARTS:
            parts[one.split, one.place].add(one.part)
    if kind == "captions":  # an image without any caption is of no use
        bad |= {key for key, gone in parts.items() if len(gone) == len(_captions(splits.named[key[0]], key[1], {}))}
    kept = {n: [i for i in range(len(s)) if (n, i) not in bad] for n, s in splits.items()}
    if kind == "objects":
        return [*written, *write_instances(folder / CLEAN, splits, kept, parts)]
    written += _write(folder, CLEAN, splits, kind, kept, {}, parts)
    if labels:
        gone = {(f.split, f.place) for f in found.findings if f.reason in LEFT_OUT and f.reason != "wrong label"}
        kept = {n: [i for i in range(len(s)) if (n, i) not in gone] for n, s in splits.items()}
        written += _write(folder, SUGGESTED, splits, kind, kept, labels, parts)
    return written


def _forget(folder: Path) -> None:
    """Remove what an earlier look has written, which this one may have nothing to put in the place of."""
    for name in (CLEAN, SUGGESTED, NEXT):
        for ending in ("csv", "jsonl"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
        for pattern in ("*.parquet", "instances_*.json", "*/[0-9]*.tar"):
            for path in (folder / name).glob(pattern):
                path.unlink()


def _write(
    folder: Path, name: str, splits: Splits[Any], kind: Kind, kept: dict[str, list[int]], labels: dict[Any, str],
    parts: Parts,
) -> list[Path]:  # fmt: skip
    if not any(kept.values()):
        return []
    first = next((source, kept[split][0]) for split, source in splits.items() if kept[split])
    if not isinstance(first[0].raw(first[1]), str | os.PathLike):
        if kind == "captions":
            return list(_shards(folder / name, splits, kept, parts))
        return list(_parquet(folder / name, splits, kept, labels))
    if kind == "captions":
        lines = [
            json.dumps(
                {"image": image, "captions": _captions(source, i, parts[split, i]), "split": split}, ensure_ascii=False
            )
            for split, source, i, image in _files(splits, kept)
        ]
        return [_write_lines(folder / f"{name}.jsonl", lines)]
    if splits.multi_label:  # a list may be empty: no class applies, which is not the same as no label
        lines = [
            json.dumps(
                {"image": image, "label": _several(source, i, labels.get((split, i))), "split": split},
                ensure_ascii=False,
            )
            for split, source, i, image in _files(splits, kept)
        ]
        return [_write_lines(folder / f"{name}.jsonl", lines)]
    header = ("image", "label", "split") if splits.classes else ("image", "split")
    rows = (
        (image, *([labels.get((split, i), _label(source, i))] if splits.classes else []), split)
        for split, source, i, image in _files(splits, kept)
    )
    write_csv(folder / f"{name}.csv", header, rows)
    return [folder / f"{name}.csv"]


def _write_lines(path: Path, lines: Sequence[str]) -> Path:
    with atomic_path(path) as temporary:  # names of files that are not UTF-8 keep their bytes
        temporary.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    return path


def _files(splits: Splits[Any], kept: dict[str, list[int]]) -> Iterator[tuple[str, Source, int, str]]:
    for split, source in splits.items():
        for i in kept[split]:
            yield split, source, i, os.path.abspath(os.fsdecode(source.raw(i)))


def _label(source: Source, i: int) -> str:
    target = source.targets[i]
    return source.classes[int(target)] if target >= 0 else ""


def _several(source: Source, i: int, suggested: str | None) -> list[str] | None:
    """The labels of an image that may have several or none of them; None where it is not labelled."""
    if suggested is not None:
        return suggested.split("|") if suggested else []
    target = source.targets[i]
    return None if target[0] < 0 else [source.classes[k] for k in np.flatnonzero(target)]


def _captions(source: Source, i: int, gone: Collection[int]) -> list[str]:
    """Those of an image that stay."""
    assert isinstance(source, CaptionSource)
    return [text for place, text in enumerate(source.captions(i)) if place not in gone]


def _shards(folder: Path, splits: Splits[Any], kept: dict[str, list[int]], parts: Parts) -> Iterator[Path]:
    """WebDataset shards, each image with a JSON of its captions."""
    for split, source in splits.items():
        for start in range(0, len(kept[split]), _SHARD):
            out = folder / split / f"{start // _SHARD:05d}.tar"
            with atomic_path(out) as temporary, tarfile.open(temporary, "w") as tar:
                for number, i in enumerate(kept[split][start : start + _SHARD], start):
                    image = _bytes(source, i)
                    with Image.open(io.BytesIO(image)) as opened:
                        ending = _ENDINGS.get(opened.format or "", f"{opened.format}".lower())
                    if f".{ending}" not in image_extensions():  # which readers go by; what it is they see themselves
                        ending = "png"
                    texts = json.dumps({"caption": _captions(source, i, parts[split, i])}).encode()
                    for name, data in ((f"{number:08d}.{ending}", image), (f"{number:08d}.json", texts)):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            yield out


def _parquet(folder: Path, splits: Splits[Any], kept: dict[str, list[int]], labels: dict[Any, str]) -> Iterator[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", image)]
    if splits.classes:
        fields.append(("label", pa.list_(pa.string()) if splits.multi_label else pa.string()))
    schema = pa.schema(fields)
    folder.mkdir(exist_ok=True)
    for split, source in splits.items():
        out = folder / f"{split}.parquet"
        with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(kept[split]), 1000):
                rows = kept[split][start : start + 1000]
                columns: dict[str, Any] = {"image": [{"bytes": _bytes(source, i), "path": None} for i in rows]}
                if "label" in schema.names:
                    columns["label"] = [
                        _several(source, i, labels.get((split, i)))
                        if splits.multi_label
                        else labels.get((split, i), _label(source, i)) or None
                        for i in rows
                    ]
                writer.write_table(pa.table(columns, schema=schema))
        yield out


def _bytes(source: Source, i: int) -> bytes:
    """The encoded image: as it was, or as PNG where it never was a file."""
    raw = source.raw(i)
    if isinstance(raw, bytes | bytearray | memoryview):
        return bytes(raw)
    data = io.BytesIO()
    image = raw if isinstance(raw, Image.Image) else source.read(i)
    image.save(data, "PNG")
    return data.getvalue()
