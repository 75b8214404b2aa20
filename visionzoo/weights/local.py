"""From a name that only this package knows to a folder on this machine."""

from __future__ import annotations

from typing import Any

from visionzoo.embedded import embedded_source
from visionzoo.weights.hub import HUB_PREFIX, own_folder


def local_source(source: Any, task: str | None = None) -> Any:
    """The folder of one of our models, for ``embedded``, ``embedded:NAME`` and ``hf-hub:org/name``; else ``source``.

    What other libraries have published at a hub name stays a hub name: :func:`visionzoo.weights.resolve_source` finds
    their weights.

    Args:
        source: what a user named.
        task: ``classify``, ``clip``, ``mae`` or ``segment``: what ``embedded`` alone is for; None where the name must
            be said.

    Raises:
        ValueError: as :func:`visionzoo.embedded.embedded_source`.
        FileNotFoundError: as :func:`visionzoo.weights.hub.own_folder`.
    """
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        folder = own_folder(source.removeprefix(HUB_PREFIX))
        return source if folder is None else str(folder)
    return embedded_source(source, task)
