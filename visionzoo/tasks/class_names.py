"""Classes are matched by name: those that weights were trained on, and those of the data at hand."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch

from visionzoo.models.bundle import CONFIG_FILE, read_config
from visionzoo.weights.local import local_source

#: Names that a message lists at most.
SHOWN = 5


def known_classes(weights: str | None) -> tuple[str, ...]:
    """Names of the classes that the head in ``weights`` answers with, in its order; empty where nothing says them.

    They are known of a run folder, of a file in one, and of a checkpoint of ours. Published weights have no names that
    data could be held against (ImageNet's folders are numbers): there the position is all one has.
    """
    if weights is None:
        return ()
    path = Path(local_source(weights, "classify"))
    folder = path.parent if path.is_file() else path
    if (folder / CONFIG_FILE).is_file() and _is_ours(folder / CONFIG_FILE):
        config = read_config(folder)
        return config.labels if config.task == "classify" else ()
    if path.suffix == ".ckpt" and path.is_file():
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return tuple(stored.get("classes") or ())
    return ()


def _is_ours(config: Path) -> bool:
    return '"schema_version"' in config.read_text(encoding="utf-8", errors="replace")


def class_difference(known: Sequence[str], given: Sequence[str]) -> str:
    """What tells two sets of names apart, with near misses; empty for the same set in any order."""
    lost = [name for name in known if name not in set(given)]
    new = [name for name in given if name not in set(known)]
    parts = [f"the data lack {_listed(lost)}"] if lost else []
    if new:
        parts.append(f"the weights do not know {_listed(new)}")
    folded = {name.casefold(): name for name in lost}
    near = [(n, difflib.get_close_matches(n.casefold(), folded, n=1, cutoff=0.75)) for n in new]
    if hints := [f"{n!r} for {folded[m[0]]!r}" for n, m in near if m][:SHOWN]:
        parts.append(f"perhaps {', '.join(hints)}")
    return "; ".join(parts)


def class_places(known: Sequence[str], given: Sequence[str]) -> list[int]:
    """For each of ``given`` its place in ``known``, which has the same names."""
    place = {name: k for k, name in enumerate(known)}
    return [place[name] for name in given]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
