"""Tables of a run that programs read: Parquet, one file each, with what holds for all rows in its metadata.

No object is unpickled, and what a damaged file says is not believed: a reader names the columns and types that it
needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionzoo.files import atomic_path
from visionzoo.limits import Limit
from visionzoo.text import parse_json

SCHEMA_VERSION = 1
#: The key of Parquet's metadata that holds our own, as JSON.
_KEY = b"visionzoo"
_TABLE = Limit("VISIONZOO_MAX_TABLE_BYTES", 2**28, "the table")


def write_table(
    path: str | Path, columns: Mapping[str, str], values: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Write a table, atomically.

    Args:
        path: where it goes.
        columns: name -> Arrow's name of its type, such as ``"int64"`` or ``"list<float>"``.
        values: name -> a list, or an array of numbers (N,); None stands for nothing.
        about: what holds for the whole table, in JSON types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [pa.array(_writable(values[name], kind), _types()[kind]) for name, kind in columns.items()]
    text = json.dumps({"schema_version": SCHEMA_VERSION, **about}, allow_nan=False)
    table = pa.table(arrays, names=list(columns)).replace_schema_metadata({_KEY: text.encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: str | Path, columns: Mapping[str, str]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """``(columns, about)`` of :func:`write_table`, as plain Python values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is damaged, too large, of a later schema, or lacks one of ``columns``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no {path}")
    try:
        with pq.ParquetFile(path) as file:
            meta = file.metadata
            size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            if (why := _TABLE.exceeded(max(size, Path(path).stat().st_size))) is not None:
                raise ValueError(f"{path} was not read: {why}")
            # Arrow has its own word for what is in a list, and Parquet another
            found = {field.name: re.sub(r"\w+: ", "", str(field.type)) for field in file.schema_arrow}
            wrong = [name for name, kind in columns.items() if found.get(name) != kind]
            if wrong:
                raise ValueError(f"{path} has no column {', '.join(wrong)} of the type that is expected")
            table = file.read(columns=list(columns))
            text = (file.schema_arrow.metadata or {}).get(_KEY, b"")
            values = {name: table.column(name).to_pylist() for name in columns}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    about = parse_json(text, f"what {path} says of itself")
    if not isinstance(about, dict) or about.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path} is not a table of schema {SCHEMA_VERSION}")
    return values, about


def _types() -> dict[str, Any]:
    import pyarrow as pa

    plain = {"int64": pa.int64(), "float": pa.float32(), "string": pa.string(), "binary": pa.binary()}
    return {**plain, **{f"list<{name}>": pa.list_(kind) for name, kind in plain.items()}}


def _writable(values: Any, kind: str) -> Any:
    """Text without halves of characters, which UTF-8 has no form of."""
    if kind == "string":
        return [_text(v) for v in values]
    if kind == "list<string>":
        return [[_text(v) for v in row] for row in values]
    return values


def _text(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()
