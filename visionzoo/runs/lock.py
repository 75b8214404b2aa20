"""One program at a time in a run folder: a lock that the system lets go of when its holder dies, however it dies."""

from __future__ import annotations

import errno
import os
import socket
import time
import warnings
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has another kind of lock
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()  # handles, to be closed in forked children, which would hold the lock too


def _close_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)

#: What a file system without locks answers.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class FolderInUseError(OSError):
    """Another program writes into the run folder. The message says which."""


class FolderLock:
    """A lock on the file ``.lock`` of a folder, held from birth to :meth:`release` or the end of the process.

    A file that a killed holder left is no lock. Child processes do not hold it. Where the file system has no locks, a
    warning says so and nothing is locked.

    Args:
        folder: an existing folder.

    Raises:
        FolderInUseError: if another process holds it; the message names process, machine and time.
        OSError: where the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / ".lock"
        self._handle: int | None = None
        if fcntl is None:
            return
        while self._handle is None:
            self._handle = self._try()
        _held.add(self._handle)

    def _try(self) -> int | None:
        """A handle that holds the lock; None where the file was removed meanwhile, by one who let go of it."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OSError(f"cannot write to the run folder {self.path.parent} ({error.strerror})") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_file(handle):
                os.close(handle)
                return None
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {socket.gethostname()} {time.time():.0f}".encode(), 0)
        except BlockingIOError:
            holder = _describe(os.pread(handle, 1000, 0).decode(errors="replace"))
            os.close(handle)
            raise FolderInUseError(f"{self.path.parent} is in use by {holder}; nothing was touched") from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"{self.path.parent} cannot be locked ({error.strerror}): see to it that only one "
                    "program trains there",
                    stacklevel=4,
                )
                return handle
            os.close(handle)
            self.path.unlink(missing_ok=True)
            raise OSError(f"cannot write to the run folder {self.path.parent} ({error.strerror})") from error
        return handle

    def _is_file(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go, and remove the file. A second time does nothing."""
        if self._handle is None or self._handle not in _held:  # or this is a child, which never held it
            return
        _held.discard(self._handle)
        if self._is_file(self._handle):
            self.path.unlink(missing_ok=True)  # while it is held: whoever opened it before sees that it is gone
        os.close(self._handle)
        self._handle = None


def _describe(text: str) -> str:
    """``"process 71 on node3 since 10:21:05"``, from what the holder wrote."""
    parts = text.split(" ")
    if len(parts) != 3 or not parts[0].isdigit() or not parts[2].isdigit():
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(parts[2])))
    return f"process {parts[0]} on {parts[1]} since {since}"
