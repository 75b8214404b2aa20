"""What kept answers are of: names that tell data sets apart, and the files behind the name of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from released.labels import question
from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.base import Source, Splits, fingerprint
from visionzoo.export.folder import checksum

#: Files of a folder of weights that say what a model computes.
TELLING = (".json", ".safetensors", ".bin", ".pt", ".pth", ".onnx")


def names_of(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many of those before it as tell different paths apart."""
    parts = [Path(path).resolve().parts[1:] if path.strip("./") == "" else Path(path).parts for path in paths]
    different, names = len(set(parts)), ["/".join(p) for p in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == different:
            break
    return names


def of_weights(name: str, weights: str | None) -> str:
    """32 hex digits of the files of a run or of weights; where there are none here, what the weights are called."""
    path = Path(name if Path(name).is_dir() else weights or name)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in TELLING and file.is_file()]
    else:
        files = [path] if path.is_file() else []
    if not files:
        return weights or "published"
    own = [f for f in files if f.name in ("config.json", "model.safetensors")]  # a run's other files may change
    return "-".join(checksum(file)[:16] for file in own or files)


def of_data(source: Source) -> str:
    """32 hex digits of which images with which labels there are."""
    return fingerprint(Splits(val=source))


def answerable(source: Source, rule: str) -> Source:
    """Those images that can be read and have a right answer; every look is at the same ones.

    Raises:
        ValueError: if there are none, or for labels that ``rule`` does not know.
    """
    counted = question(source, rule).counted if rule == "real" else source.targets >= 0
    found = readable(source.take(np.flatnonzero(counted)))
    if not len(found):
        raise ValueError(f"none of {len(source):,} images can be read and has a label")
    return found


def readable(source: Source) -> Source:
    """Those images that can be read; the others are named."""
    kept = []
    for i in range(len(source)):
        try:
            source.read(i)
        except UnreadableImage as error:
            print(f"left out: {source.sample_id(i)} cannot be read: {error}", flush=True)
            continue
        kept.append(i)
    return source if len(kept) == len(source) else source.take(np.array(kept, np.int64))
