"""A progress bar for people, and nothing for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(steps: Iterable[T], total: int, text: str, *, enough: int = 4) -> Iterator[T]:
    """``steps`` as they are, with a bar on stderr if that is a terminal and there are more than ``enough`` of them."""
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    if not console.is_terminal or total <= enough:
        yield from steps
        return
    yield from rich_track(steps, description=text, total=total, console=console, transient=True)
