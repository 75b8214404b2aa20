"""The folder that an export is: what its files are called, and how they are written, checked and described."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from secrets import token_hex
from typing import Any

from visionzoo.files import refuse_address, write_json, write_text
from visionzoo.plain import is_a, shown

SPEC_FILE = "preprocess.json"  #: everything that a program must know
SUMS_FILE = "SHA256SUMS"
SCRIPT_FILE = "predict.py"
FORMAT = "visionzoo-export"
#: Raised where an older reader would answer wrongly.
VERSION = 1


def is_exported(path: str | Path) -> bool:
    """Whether a folder is one of ours, whatever its state."""
    return (Path(path) / SPEC_FILE).is_file()


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, which takes its name where the block ends well, and goes where not.

    Raises:
        FileExistsError: if there is something at ``target``.
        ValueError: for an address.
    """
    refuse_address(target)
    target = Path(target)
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; an export writes a new folder: give another --out, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:100]}.{token_hex(6)}")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_spec(folder: Path, spec: dict[str, Any], readme: str, script: str) -> None:
    """Everything but the graphs, then the checksums of all.

    Args:
        folder: that holds the graphs.
        spec: JSON types.
        readme: text of ``README.md``.
        script: which of ``visionzoo/export/scripts`` becomes ``predict.py``; "" for none.
    """
    write_json(folder / SPEC_FILE, spec)
    write_text(folder / "README.md", readme)
    if script:
        write_text(folder / SCRIPT_FILE, (files("visionzoo.export") / "scripts" / script).read_text(encoding="utf-8"))
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    sums = [f"{checksum(folder / name)}  {name}" for name in names]
    write_text(folder / SUMS_FILE, "\n".join(sums) + "\n")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_spec(source: str | Path) -> dict[str, Any]:
    """What ``preprocess.json`` of an exported folder says, after all files were held against their checksums.

    Raises:
        FileNotFoundError: if there is no such folder, or it is none of ours.
        ValueError: for a folder that was changed afterwards, or that another version wrote.
    """
    folder = Path(source)
    if not is_exported(folder):
        refuse_address(source)
        raise FileNotFoundError(f"{folder} is not an exported folder: it has no {SPEC_FILE}")
    try:
        spec = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / SPEC_FILE} is damaged: {error}") from None
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        raise ValueError(f"{folder / SPEC_FILE} is no {FORMAT}; give a folder that visionzoo export wrote")
    version = spec.get("format_version")
    if version != VERSION:
        raise ValueError(
            f"{folder} is of version {shown(version)} of exported folders, this visionzoo {spec_needs(version)}"
        )
    _check_sums(folder)
    for key, hint in (("kind", str), ("name", str), ("files", dict[str, str]), ("preprocess", dict[str, Any])):
        if not is_a(spec.get(key), hint):
            raise ValueError(f"{folder / SPEC_FILE}: {key} is {shown(spec.get(key))}")
    return spec


def spec_needs(version: Any) -> str:
    """What to do about a folder of another version."""
    newer = isinstance(version, int) and version > VERSION
    return f"reads {VERSION}; {'update visionzoo' if newer else 'export the model anew'}"


def _check_sums(folder: Path) -> None:
    path = folder / SUMS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} was changed after it was exported: {SUMS_FILE} is missing; export the model anew")
    for line in path.read_text(encoding="utf-8").splitlines():
        wanted, _, name = line.partition("  ")
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_file() or checksum(file) != wanted:
            raise ValueError(
                f"{folder} was changed after it was exported: {shown(name)} is not what {SUMS_FILE} says; export the "
                "model anew"
            )
