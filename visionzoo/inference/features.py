"""What a frozen model makes of every image of a source, computed once and kept.

Legend: N images, B batch, C channels, (H, W) pixels, D width of the features, K classes.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass

import numpy as np
import torch

from visionzoo.cache import Cache
from visionzoo.data.sources.base import Source, Splits, fingerprint
from visionzoo.inference.stream import Stream, Unreadable

#: Images whose features are kept as one entry: a pass that is broken off loses no more than these.
CHUNK = 512


@dataclass(frozen=True)
class SourceFeatures:
    """Features of the labelled images of a source that could be read, in its order."""

    values: np.ndarray  #: (N, D) float32
    labels: np.ndarray  #: (N,) int64, or (N, K) float32 for multi-label data
    places: np.ndarray  #: (N,) int64, of each image in the source
    unreadable: tuple[Unreadable, ...]
    cached: bool  #: all of them were read from the disk


def source_features(
    stream: Stream, cache: Cache, source: Source, *, batch_size: int, title: str, unlabelled: bool = False
) -> SourceFeatures:
    """Features of the labelled images of a source, from the cache where they are there.

    Args:
        stream: its ``forward`` gives (B, D).
        cache: made for the model, the preprocessing and the kind of feature.
        source: the images.
        batch_size: images sent through the model at a time.
        title: what they are called on the progress bar.
        unlabelled: of the images without a label too.

    Raises:
        KeyboardInterrupt: with what is kept, in words.
    """
    content = _content(source)
    labelled = np.flatnonzero([unlabelled or source.has_label(i) for i in range(len(source))])
    values, places = [np.zeros((0, 1), np.float32)], [np.zeros(0, np.int64)]
    unreadable: list[Unreadable] = []
    cached, kept_images = True, 0
    for start in range(0, len(labelled), CHUNK):
        chunk = labelled[start : start + CHUNK]
        key = (content, start, len(chunk))
        if (stored := cache.read(key)) is not None:
            values.append(stored["values"].numpy())
            places.append(chunk)
            kept_images += len(chunk)
            continue
        cached = False
        try:
            found, seen, bad = _chunk_features(
                stream, source, chunk, batch_size, f"{title}, from {start + 1:,} of {len(labelled):,}"
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped. {kept_images:,} of {len(labelled):,} images are kept: go on with the same command"
            ) from None
        # one with faults is read again next time, so that they are listed again
        if not bad and cache.write({"values": torch.from_numpy(found)}, key):
            kept_images += len(chunk)
        values.append(found)
        places.append(seen)
        unreadable += bad
    kept = [part for part in values if len(part)] or values[:1]
    where = np.concatenate(places)
    return SourceFeatures(np.concatenate(kept), source.targets[where], where, tuple(unreadable), cached)


def _chunk_features(
    stream: Stream, source: Source, chunk: np.ndarray, batch_size: int, title: str
) -> tuple[np.ndarray, np.ndarray, list[Unreadable]]:
    """((N, D), (N,), faults) of the images at ``chunk``, (M,) places in the source, of which N could be read."""
    values: list[np.ndarray] = []
    places: list[int] = []
    unreadable: list[Unreadable] = []
    for output in stream.run(
        len(chunk),
        lambda i: source.read(int(chunk[i])),
        lambda i: source.sample_id(int(chunk[i])),
        batch_size,
        title,
    ):
        unreadable += output.unreadable
        places += output.positions
        if output.positions:
            values.append(output.values.numpy())
    return (np.concatenate(values) if values else np.zeros((0, 1), np.float32)), chunk[places], unreadable


def _content(source: Source) -> str:
    """A hash of which samples these are, with sizes and times of their files: another folder may use the same names."""

    @functools.cache
    def state(path: str) -> str:
        try:
            status = os.stat(path)
        except OSError:
            return ""
        return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"

    names = [source.sample_id(i) for i in range(len(source))]
    samples = (f"{name}\0{state(name) or state(name.rpartition(':')[0])}" for name in names)
    digest = hashlib.blake2b(fingerprint(Splits(train=source)).encode(), digest_size=16)
    for sample in samples:
        digest.update(sample.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
