"""One program at a time in a run folder, and nobody locked out by one that is dead."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visionzoo.runs import FolderInUseError, FolderLock, lock


def forked(job: Callable[[], Any]) -> int:
    """A child that does ``job`` and then sleeps; gives its number once the job is done."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        job()
        os.write(write, b".")
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on {socket.gethostname()} since 20"):
        FolderLock(tmp_path)
    first.release()
    assert not list(tmp_path.iterdir())
    FolderLock(tmp_path).release()


def test_the_lock_dies_with_its_holder(tmp_path: Path, survived: Callable[..., None]) -> None:
    child = forked(lambda: FolderLock(tmp_path))
    with pytest.raises(FolderInUseError, match=f"process {child} "):
        FolderLock(tmp_path)
    end(child)
    assert (tmp_path / ".lock").is_file()  # left behind, and no lock
    FolderLock(tmp_path).release()
    survived("a second program in a run folder: refused while the first lives, and no longer")


def test_workers_that_outlive_their_run_do_not_hold_it(tmp_path: Path) -> None:
    held = FolderLock(tmp_path)
    worker = forked(held.release)  # in a child it does nothing
    assert (tmp_path / ".lock").is_file()
    held.release()
    FolderLock(tmp_path).release()
    end(worker)


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="cannot be locked .No locks available.*only one program"):
        FolderLock(tmp_path).release()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match=r"cannot write to the run folder .* \(Read-only file system\)"):
        FolderLock(tmp_path)
