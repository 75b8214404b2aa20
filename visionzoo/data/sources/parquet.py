"""Parquet in the dataset hubs' layout: an ``image`` column of ``{bytes, path}`` and a ``label`` column.

Class names come from the schema's ``huggingface`` metadata when they are there.
"""

from __future__ import annotations

import os
import warnings
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from visionzoo.data.images import ImageInput, UnreadableImage
from visionzoo.data.sources.base import NO_LABEL, Source, printable
from visionzoo.data.sources.labels import encode_labels
from visionzoo.data.sources.rows import pick_column
from visionzoo.text import parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

#: Image columns up to this many bytes, decompressed, are held in memory. Beyond it row groups are read when needed.
MEMORY_LIMIT = 4 * 2**30
#: Row groups that each process keeps when the images do not fit in memory.
CACHED_GROUPS = 8

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


class ParquetSource(Source):
    """Rows of one or more parquet files. Images stay encoded, in Arrow buffers that forked workers share."""

    def __init__(
        self,
        files: Sequence[str],
        *,
        names: tuple[str, ...] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        labelled: bool = True,
    ) -> None:
        """
        Args:
            files: parquet files with the same columns, read one after another.
            names: class names in order; None for those of the schema.
            image_column, label_column: column names; None for the schema's image and class-label features or the usual
                names.
            labelled: False reads no labels, whether there are some or not.

        Raises:
            ValueError: for a file that is not parquet, a missing column, or labels out of range.
        """
        self.files = tuple(files)
        opened = [_open(path) for path in self.files]
        schema = opened[0].schema_arrow
        self.image_column = _image_column(self.files[0], schema, image_column)
        for path, parquet in zip(self.files, opened, strict=True):
            pick_column(path, parquet.schema_arrow.names, self.image_column, (), "image_column")
            _check_images(path, self.image_column, parquet.schema_arrow.field(self.image_column).type)
        label_key, schema_names = _label_column(self.files[0], schema, label_column) if labelled else ("", None)
        labels: list[Any] = []
        groups: list[tuple[int, int]] = []
        ends: list[int] = []
        self._file_starts: list[int] = []
        total = image_bytes = 0
        for f, (path, parquet) in enumerate(zip(self.files, opened, strict=True)):
            self._file_starts.append(total)
            if labelled:
                pick_column(path, parquet.schema_arrow.names, label_key, (), "label_column")
                labels += _column_values(path, parquet, label_key)
            else:
                labels += [None] * parquet.metadata.num_rows
            for g in range(parquet.metadata.num_row_groups):
                group = parquet.metadata.row_group(g)
                total += group.num_rows
                image_bytes += group.total_byte_size
                groups.append((f, g))
                ends.append(total)
            parquet.close()
        self._groups, self._ends = groups, ends
        self._cache_size = len(groups) if image_bytes <= MEMORY_LIMIT else CACHED_GROUPS
        if self._cache_size < len(groups):
            warnings.warn(
                f"{self.files[0]}: {image_bytes / 2**30:.1f} GiB of images are more than the "
                f"{MEMORY_LIMIT / 2**30:.0f} GiB kept in memory, shuffled reading is slow; class folders are faster",
                stacklevel=2,
            )
        if all(label == NO_LABEL for label in labels):  # how the hubs write a test split whose labels are kept secret
            labels = [None] * len(labels)
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self.classes, self.targets, self.multi_label = encode_labels(
            labels, names if names is not None else schema_names, self.sample_id
        )

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker reads its own copy; Arrow buffers would be copied through a pipe instead.
        return {**self.__dict__, "_cache": OrderedDict()}

    def sample_id(self, i: int) -> str:
        """The file and the row in it."""
        f = bisect_right(self._file_starts, i) - 1
        return f"{printable(self.files[f])}:{i - self._file_starts[f]}"

    def stable_ids(self) -> Iterable[str]:
        """Names and sizes of the files, in place of their rows."""
        # File names and sizes stand for the rows: cheap, and a changed image changes the size.
        return [f"{printable(os.path.basename(path))} {os.path.getsize(path)}" for path in self.files]

    def preload(self) -> None:
        """Read all images that fit in memory. Before workers are forked this saves each of them doing it."""
        if self._cache_size == len(self._groups):
            for group in range(len(self._groups)):
                self._column(group)

    def _column(self, group: int) -> pa.ChunkedArray:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        f, g = self._groups[group]
        with _open(self.files[f]) as parquet:
            # No threads: Arrow's pool does not survive a fork.
            table = parquet.read_row_group(g, columns=[self.image_column], use_threads=False)
        self._cache[group] = table.column(self.image_column)
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return self._cache[group]

    def raw(self, i: int) -> ImageInput:
        """The cell's bytes, or the path in it. Raises UnreadableImage."""
        import pyarrow as pa

        group = bisect_right(self._ends, i)
        try:
            cell = self._column(group)[i - (self._ends[group - 1] if group else 0)]
        except (OSError, ValueError, RuntimeError) as error:
            raise UnreadableImage(f"parquet: {_one_line(error)}") from error
        fields: dict[str, Any] = {"bytes": cell}
        if pa.types.is_struct(cell.type):
            fields = dict(cell) if cell.is_valid else {}
        for value in (fields.get("bytes"), fields.get("path")):
            if value is None or not value.is_valid:
                continue
            if not isinstance(value, pa.StringScalar | pa.LargeStringScalar | pa.StringViewScalar):
                return memoryview(value.as_buffer()).cast("B")
            return os.path.join(os.path.dirname(self.files[self._groups[group][0]]), value.as_py())
        raise UnreadableImage("the image cell is null")


def _open(path: str) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:  # which of them is up to the byte that is damaged
        raise _damaged(path, error) from error


def _column_values(path: str, parquet: pq.ParquetFile, column: str) -> list[Any]:
    import pyarrow as pa

    try:
        return parquet.read(columns=[column]).column(column).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a readable parquet file: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The hub's description of the columns, or nothing."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"], "the schema")["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_column(path: str, schema: pa.Schema, wanted: str | None) -> str:
    named = [n for n, f in _features(schema).items() if isinstance(f, dict) and f.get("_type") == "Image"]
    return pick_column(path, schema.names, wanted, (*IMAGE_COLUMNS, *named), "image_column")


def _check_images(path: str, column: str, kind: pa.DataType) -> None:
    """Raises ValueError for a column that holds no images as files have them."""
    import pyarrow as pa

    inside = (
        {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)} if pa.types.is_struct(kind) else {}
    )
    kinds = [inside[name] for name in ("bytes", "path") if name in inside] if inside else [kind]
    if not kinds or any(pa.types.is_nested(k) or not _is_bytes_or_text(k) for k in kinds):
        raise ValueError(
            f"{path}: the column {column!r} holds {str(kind)[:80]}; an image is bytes of a file (PNG, JPEG), a path, "
            "or both as {bytes, path}. Take lists apart into rows, and save pixels as PNG"
        )


def _is_bytes_or_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary, types.is_string)
    return any(test(kind) for test in (*tests, types.is_large_string, types.is_string_view, types.is_null))


def _label_column(path: str, schema: pa.Schema, wanted: str | None) -> tuple[str, tuple[str, ...] | None]:
    """The label column and its class names, if the schema says them."""
    names = {name: _class_names(feature) for name, feature in _features(schema).items()}
    described = [name for name, classes in names.items() if classes]
    column = pick_column(path, schema.names, wanted, (*LABEL_COLUMNS, *described), "label_column")
    return column, names.get(column)


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Names of a ``ClassLabel``, also inside a sequence of them."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return tuple(str(name) for name in feature["names"])
    return _class_names(feature.get("feature"))
