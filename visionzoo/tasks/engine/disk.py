"""A disk that fills up or goes away does not end a run: what that costs is said at once, and when the run ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from visionzoo.terminal import say

#: What should be on the disk and is not, with the reason. A later write that ends well takes it off.
unwritten: dict[Path, str] = {}


@contextmanager
def disk_may_fail(path: Path, cost: str, *, every_time: bool = False) -> Iterator[None]:
    """Turn an OSError of a write into a warning, and remember that ``path`` is not what it should be.

    Raising on one rank would leave the others waiting at the next barrier.

    Args:
        path: the file or folder.
        cost: what that means, for the warning.
        every_time: warn each time, not only when it begins.
    """
    try:
        yield
    except OSError as error:
        if every_time or path not in unwritten:
            # with the time, since Python says the same warning once
            rank_zero_warn(f"{time.strftime('%H:%M:%S')} could not write {path} ({error}); {cost}")
        unwritten[path] = error.strerror or str(error)
    else:
        if unwritten.pop(path, None) is not None:
            say(f"{path} could be written again", flush=True)


def what_is_lost(folder: Path) -> str:
    """``"last.ckpt, metrics.csv (No space left on device)"``; empty where everything could be written."""
    lost = {path: why for path, why in unwritten.items() if path == folder or folder in path.parents}
    names = ["pictures" if path == folder else str(path.relative_to(folder)) for path in lost]
    return f"{', '.join(sorted(names))} ({'; '.join(sorted(set(lost.values())))})" if lost else ""
