"""Write a file whole or not at all. This module imports nothing from visionzoo.

A killed process, a full disk or a lost machine leaves either the old file or the new one, never half of one: the text
goes to a temporary file in the same folder, is flushed to the disk, and takes the final name in one step.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: One slash is enough: ``pathlib`` folds two into one.
_ADDRESS = re.compile(r"(?:^|/)(?:https?|ftps?|s3|gs|gcs|hf|az|abfss?|hdfs):/", re.IGNORECASE)
#: The names that this module gives while it writes: a dot, the stem, 12 hex digits, the suffix.
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}(\.[^.]*)?", re.DOTALL)


def is_address(path: Any) -> bool:
    """Whether a path is one of the network's, such as ``https://...`` or ``s3://...``, also behind a folder's name."""
    return isinstance(path, str | os.PathLike) and _ADDRESS.search(os.fsdecode(path)) is not None


def refuse_address(path: Any) -> None:
    """Raises ValueError for a path that is an address: nothing is fetched."""
    if is_address(path):
        raise ValueError(
            f"{os.fsdecode(path)} is an address, and addresses are not fetched; download it first and give the path"
        )


def similar_names(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of ``names`` that ``name`` may be a slip of, nearest first. What shares half its letters is none."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.75)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well, it becomes ``path``, otherwise it is removed.

    The temporary name keeps the suffix of ``path``, since some writers choose their format by it. Missing parent
    folders are made. The file gets the permissions that a plain ``open`` would have given it.

    Raises:
        OSError: for a full disk or a folder that cannot be written; what was at ``path`` is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile: its files are private to the user, and results should be as open as any other file
    temporary = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(6)}{target.suffix}")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors replaces the file by one that only its owner can read
        _flush(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(target.parent)  # the new name itself must reach the disk


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder beside ``path``; when the block ends well, it takes the place of ``path``, with all that was
    there, otherwise it is removed.

    Raises:
        OSError: for a full disk or a folder that cannot be written; what was at ``path`` is untouched.
    """
    target = Path(path)
    new, old = (target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}") for _ in range(2))
    new.mkdir(parents=True)
    try:
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _flush(file)
        if target.exists():
            target.rename(old)  # a folder takes no name that is taken
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    _flush(target.parent)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed processes left half written in ``folder``. Call it where nobody else is writing."""
    for path in Path(folder).iterdir():
        if _TEMPORARY.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Raises ValueError for NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows as CSV, atomically. Names of files that are not UTF-8 keep their bytes."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder, and renames durably without
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
