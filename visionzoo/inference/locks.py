"""What an object that several threads may share is guarded by."""

from __future__ import annotations

import threading
from types import TracebackType


class Lock:
    """A lock, entered by ``with``. A copy of its owner, or one in another process, gets a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return type(self), ()
