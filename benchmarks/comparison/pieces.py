"""Pieces of work that are kept when finished: each runs in a process of its own and leaves one JSON file."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from script import Interrupted

from comparison.child import OUT_OF_MEMORY
from comparison.child import main as child_main
from comparison.models import Entry
from visionzoo.files import write_json

SCRIPT = Path(__file__).resolve().parents[1] / "cnn_vs_vit.py"
#: A finding is kept; a failure is tried again by the next command.
KEPT = ("done", OUT_OF_MEMORY)
#: What a training imports, and takes most of ten seconds.
PRELOADED = (
    "albumentations",
    "timm.optim",
    "visionzoo.data.classify",
    "visionzoo.inference.classifier",
    "visionzoo.tasks.classify",
)


@dataclass(frozen=True)
class Piece:
    """One thing to find out."""

    kind: str  #: ``speed``, ``pace``, ``pretrain``, ``train`` or ``probe``
    key: str  #: names its files
    about: dict[str, Any]  #: model, recipe and the like, for the tables
    spec: dict[str, Any]  #: for the process that does it


def key_of(*parts: object) -> str:
    """A file name that says what a piece is about."""
    return re.sub(r"[^\w.+=-]+", "_", "-".join(str(p) for p in parts))


def training_key(entry: Entry, column: str, seed: int, fraction: float, kind: str = "train") -> str:
    """Of a training, or of the trial before it."""
    return key_of(kind, entry.label, column, f"seed{seed}", f"{fraction:g}")


class Store:
    """The finished pieces in a folder."""

    def __init__(self, folder: Path, machine: dict[str, Any], device: str, threads: int | None) -> None:
        self.pieces, self.work = folder / "pieces", folder / "work"
        self.machine, self.threads = machine, threads
        self.start = Processes(device, threads)

    def finished(self, piece: Piece) -> dict[str, Any] | None:
        """The record of a piece that need not be done again."""
        path = self.pieces / f"{piece.key}.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        same = record["about"] == piece.about  # or it is of another backbone or weights under the same name
        return record if record["status"] in KEPT and same else None

    def answers(self, key: str) -> Path:
        """Where what a piece answered for each image is kept."""
        return self.pieces / f"{key}.parquet"

    def weights(self, key: str) -> Path:
        """The folder where what a pretraining has learned is kept."""
        return self.pieces / key

    def run(self, piece: Piece) -> dict[str, Any]:
        """Do a piece and keep its record.

        Raises:
            Interrupted: if the process was stopped from outside.
        """
        folder = self.work / piece.key
        folder.mkdir(parents=True, exist_ok=True)
        spec, result, log = folder / "spec.json", folder / "result.json", folder / "log.txt"
        result.unlink(missing_ok=True)
        write_json(spec, {"spec": piece.spec, "threads": self.threads})
        code = self.start(piece.kind, spec, result, log)
        if code == 0:
            found = json.loads(result.read_text())
        elif code in (130, 75, -signal.SIGINT, -signal.SIGTERM):
            raise Interrupted
        elif code == -signal.SIGKILL:
            found = {"status": OUT_OF_MEMORY, "result": None, "why": "the system ended the process"}
        else:
            lines = log.read_text(errors="replace").strip().splitlines()
            found = {"status": "failed", "result": None, "why": lines[-1] if lines else f"exit code {code}"}
        record = {"kind": piece.kind, "about": piece.about, **found, "machine": self.machine}
        write_json(self.pieces / f"{piece.key}.json", record)
        return record


class Processes:
    """Starts the process of a piece and waits for it.

    Importing Lightning takes seconds, so on a CPU the processes of trainings are forked from one that has imported
    what they need. Measurements of memory begin with nothing, and a GPU's driver does not survive a fork.
    """

    def __init__(self, device: str, threads: int | None) -> None:
        self.fork = device == "cpu" and "forkserver" in multiprocessing.get_all_start_methods()
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        if threads:
            os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}

    def __call__(self, kind: str, spec: Path, result: Path, log: Path) -> int:
        """The exit code, negative for a signal.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, when the process has ended.
        """
        if kind != "speed" and self.fork:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(PRELOADED))
            process = context.Process(target=_forked, args=(kind, spec, result, log))
            process.start()
            _wait(process.pid, process.join, process.kill)
            assert process.exitcode is not None
            return process.exitcode
        command = [sys.executable, str(SCRIPT), "--child", kind, str(spec), str(result)]
        with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as started:
            _wait(started.pid, started.wait, started.kill)
            return started.wait()


def _forked(kind: str, spec: Path, result: Path, log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(child_main(kind, str(spec), str(result)))


def _wait(pid: int | None, wait: Callable[..., Any], kill: Callable[[], None]) -> None:
    """Wait for a process. It is told of a SIGTERM; of Ctrl-C the terminal has told it, and it saves what it has."""
    assert pid is not None
    told = []

    def pass_on(number: int, _: FrameType | None) -> None:
        told.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        wait()
    except KeyboardInterrupt:
        try:
            wait()
        except KeyboardInterrupt:
            kill()
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, previous)
    if told:  # whatever its exit code: a signal to the group also ends the process that it was forked from
        raise Interrupted
