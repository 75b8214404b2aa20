"""What was run is known: versions, command line, seed, git state and data fingerprint go to ``run.json``.

Nothing in the record names the machine, its user or its folders beyond what the user typed, so a run can be published.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import visionzoo
from visionzoo.files import write_json
from visionzoo.plugins import installed_packages, remembered
from visionzoo.runs.folder import RunFolder
from visionzoo.text import parse_json

SCHEMA_VERSION = 1
PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "timm",
    "torchmetrics",
    "albumentations",
    "numpy",
    "pillow",
    "peft",
)


def describe_run(
    *,
    seed: int | None,
    data: dict[str, Any] | None = None,
    ancestors: list[dict[str, Any]] | None = None,
    argv: list[str] | None = None,
) -> dict[str, Any]:
    """What is known of the running process, as plain JSON types.

    Args:
        seed: the seed of the run, or None when it was not seeded.
        data: what identifies the data, such as ``{"path": "digits", "fingerprint": fingerprint(splits)}`` with
            :func:`visionzoo.data.sources.base.fingerprint`.
        ancestors: of the weights that it began with, see :mod:`visionzoo.runs.lineage`; None where it trains nothing.
        argv: the command line; None for ``sys.argv``. Of its first item only the last path part is kept.
    """
    command = list(sys.argv if argv is None else argv)
    if command:
        command[0] = Path(command[0]).name
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "seed": seed,
        "versions": versions(),
        "imports": remembered(),
        "extensions": installed_packages(),
        "git": git_state(),
        "machine": _machine(),
        "data": data,
        **({} if ancestors is None else {"ancestors": ancestors}),
    }


def write_record(folder: RunFolder, description: dict[str, Any]) -> None:
    """Append a description to ``run.json``: a run that was resumed has one entry for each time it was started.

    Raises:
        ValueError: if ``run.json`` is there and is not such a record.
    """
    sessions = read_record(folder) if folder.record.exists() else []
    write_json(folder.record, {"schema_version": SCHEMA_VERSION, "sessions": [*sessions, description]})


def minutes_in_words(sessions: Sequence[Mapping[str, Any]]) -> str:
    """Minutes of training in all sessions of a record; empty where none is known. A session that was killed left none:
    then it was more."""
    known = [s["minutes"] for s in sessions if isinstance(s.get("minutes"), int | float)]
    more = any("ancestors" in s and "minutes" not in s for s in sessions)
    return f"{'more than ' if more else ''}{sum(known):.1f}" if known else ""


def amend_record(folder: RunFolder, **values: Any) -> None:
    """Put values into the last session of ``run.json``, such as the minutes that it took; nothing without a record.

    Raises:
        ValueError: if ``run.json`` is not such a record.
    """
    sessions = read_record(folder) if folder.record.is_file() else []
    if sessions:
        sessions[-1].update(values)
        write_json(folder.record, {"schema_version": SCHEMA_VERSION, "sessions": sessions})


def read_record(folder: RunFolder) -> list[dict[str, Any]]:
    """The descriptions in ``run.json``, oldest first.

    Raises:
        FileNotFoundError: if the run has no record.
        ValueError: if the file is not a record of a known schema.
    """
    try:
        record = parse_json(folder.record.read_bytes(), str(folder.record))
    except ValueError as error:
        raise ValueError(f"{error}; move it away to go on") from error
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{folder.record} is not a run record of schema {SCHEMA_VERSION}; move it away to go on")
    sessions = record.get("sessions")
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        raise ValueError(f"{folder.record} has no list of sessions; move it away to go on")
    return sessions


def versions() -> dict[str, str]:
    """Versions of Python, of visionzoo, and of the installed packages that shape a result."""
    found = {"python": platform.python_version(), "visionzoo": visionzoo.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return found


def git_state(folder: str | Path | None = None) -> dict[str, Any] | None:
    """Commit of the source tree and whether tracked files differ from it; None where the code is not under git.

    Args:
        folder: a folder that git tracks; None for that of visionzoo itself.
    """
    folder = Path(folder) if folder is not None else Path(__file__).parents[1]
    # An installed copy may lie inside some other repository, which says nothing of it: ask only where git tracks files.
    if not _git(folder, "ls-files", "."):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _machine() -> dict[str, Any]:
    import torch  # takes seconds, and what reads a record does without

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"system": platform.system(), "processor": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}


def _git(folder: Path, *command: str) -> str:
    """Output of a git command; empty where git is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
