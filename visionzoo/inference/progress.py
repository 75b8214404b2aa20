"""A progress bar for people; now and then a line where a log is written; nothing for what is soon done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from visionzoo.terminal import say

T = TypeVar("T")

#: Seconds between two lines of a log.
EVERY = 30.0


def track(
    steps: Iterable[T], total: int, text: str, *, enough: int = 4, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """``steps`` as they are, with a bar on stderr if that is a terminal and there are more than ``enough`` of them.

    Elsewhere a line is written there every half minute, so that a log shows that work goes on, and how much is left.
    """
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    if console.is_terminal and total > enough:
        yield from rich_track(steps, description=text, total=total, console=console, transient=True)
        return
    begun = said = clock()
    for done, step in enumerate(steps):
        if done and (now := clock()) - said >= EVERY:
            said = now
            left = timedelta(seconds=round((now - begun) / done * (total - done)))
            say(f"{text}: {done:,} of {total:,}, about {left} left", file=sys.stderr, flush=True)
        yield step
