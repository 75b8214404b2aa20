"""What is known of every image of a data set: where it is, its label, its pixels, and what a model makes of it.

Legend: N images, D width of the features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionzoo.cache import Cache
from visionzoo.curation.findings import Finding
from visionzoo.curation.looks import Looks, look
from visionzoo.curation.model import Eye
from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.reading import Kind
from visionzoo.inference.stream import Unreadable


@dataclass
class Examined:
    """All images of a data set that could be read, split after split."""

    kind: Kind
    splits: Splits[Any]
    split_of: np.ndarray  #: (N,) number of the split
    places: np.ndarray  #: (N,) position in the split
    targets: np.ndarray  #: (N,) or (N, K)
    looks: Looks
    features: np.ndarray | None  #: (N, D), None without a model
    unreadable: dict[str, tuple[Unreadable, ...]]

    @property
    def names(self) -> list[str]:
        """Of the splits, in order."""
        return [name for name, _ in self.splits.items()]

    def source(self, row: int) -> Source:
        """That of an image."""
        found: Source = self.splits.items()[self.split_of[row]][1]
        return found

    def label(self, row: int) -> str:
        """The label of an image in words; empty where it has none."""
        target = self.targets[row]
        if self.splits.multi_label:
            return "" if target[0] < 0 else "|".join(self.splits.classes[k] for k in np.flatnonzero(target > 0))
        return self.splits.classes[int(target)] if target >= 0 and self.splits.classes else ""

    def finding(self, reason: str, row: int, text: str, score: float, **more: Any) -> Finding:
        """A finding on one image."""
        place = int(self.places[row])
        return Finding(
            reason=reason,
            split=self.names[self.split_of[row]],
            place=place,
            image=self.source(row).sample_id(place),
            text=text,
            score=float(score),
            label=self.label(row),
            **more,
        )


def examine(kind: Kind, splits: Splits[Any], eye: Eye | None, cache: str | Path | None, batch: int) -> Examined:
    """Every image, once by its pixels and once by the model; those stay that both could read."""
    store = Cache("features", cache)
    parts = []
    unreadable: dict[str, tuple[Unreadable, ...]] = {}
    for number, (name, source) in enumerate(splits.items()):
        looks, seen = look(source, store, title=f"pixels of {name}")
        unreadable[name] = seen.unreadable
        places, features = seen.places, None
        if eye is not None and len(places):
            given = eye.features(source, cache, batch, f"features of {name}")
            both, here, there = np.intersect1d(places, given.places, return_indices=True)
            looks, places, features = looks.take(here), both, given.values[there]
        parts.append((number, places, source.targets[places], looks, features))
    parts = [part for part in parts if len(part[1])]
    if not parts:
        raise ValueError(
            "none of the images can be read: " + "; ".join(u.reason for u in unreadable[next(iter(unreadable))][:3])
        )
    return Examined(
        kind,
        splits,
        np.concatenate([np.full(len(places), number) for number, places, *_ in parts]),
        np.concatenate([places for _, places, *_ in parts]),
        np.concatenate([targets for _, _, targets, *_ in parts]),
        Looks(*(np.concatenate([getattr(p[3], name) for p in parts]) for name in ("measures", "thumbnails"))),
        None if eye is None else np.concatenate([p[4] for p in parts if p[4] is not None]),
        unreadable,
    )
