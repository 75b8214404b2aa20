"""Features of a network's own pooling, as its head will read them, and how fast they come.

Legend: N images, B batch, C channels, (H, W) pixels, D width of the features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzoo.auto.network import Network
from visionzoo.cache import Cache
from visionzoo.data.sources.base import Source
from visionzoo.inference.features import SourceFeatures, source_features
from visionzoo.inference.stream import Stream, Unreadable
from visionzoo.weights.fingerprint import model_fingerprint

#: Seconds for which, and images up to which, the speed of a network is measured.
_SECONDS, _IMAGES = 2.0, 256


def feature_stream(network: Network, device: torch.device) -> Stream:
    """From images to what the head reads, (B, D)."""
    model = network.model.to(device).eval()
    return Stream(model.embed_images, model.preprocess, device)


def feature_batch(device: torch.device) -> int:
    """Images sent through a network at a time."""
    return 32 if device.type == "cpu" else 128


def images_per_second(stream: Stream, source: Source, batch: int) -> float:
    """Of the forward pass, reading included; measured on some images of a source, spread over it."""
    places = np.linspace(0, len(source) - 1, min(len(source), _IMAGES)).astype(int)
    begun = last = time.monotonic()
    done, seconds = 0, 0.0
    outputs = stream.run(
        len(places), lambda i: source.read(int(places[i])), lambda i: source.sample_id(int(places[i])), batch, "speed"
    )
    for number, output in enumerate(outputs):
        now = time.monotonic()
        # the first batch has threads started and buffers made; it counts where there is no other, or time for none
        if number or len(places) <= batch or now - begun > _SECONDS:
            done += len(output.positions) + len(output.unreadable)
            seconds += now - last
        last = now
        if now - begun > _SECONDS:
            break
    return max(done, 1) / max(seconds, 1e-6)


def train_features(
    network: Network, stream: Stream, source: Source, batch: int, cache: str | Path | None
) -> SourceFeatures:
    """Features of the labelled images of a source, computed once and kept; a pass that is broken off goes on."""
    identity = model_fingerprint(network.model, preprocess=network.model.preprocess, context=("fit", "head_input"))
    return source_features(stream, Cache("features", cache, of=identity), source, batch_size=batch, title="features")


def features_at(
    stream: Stream, count: int, read: Callable[[int], Image.Image], name: Callable[[int], str], batch: int
) -> tuple[Tensor, list[int], list[Unreadable]]:
    """Features of images that are in no source.

    Args:
        stream: from :func:`feature_stream`.
        count: number of images.
        read: gives image ``i``.
        name: what it is called.
        batch: images at a time.

    Returns:
        (N, D) float32, which ones could be read, and what is wrong with the others.
    """
    values, seen, unreadable = [], [], []
    for output in stream.run(count, read, name, batch):
        unreadable += output.unreadable
        seen += output.positions
        if output.positions:
            values.append(output.values)
    return (torch.cat(values) if values else torch.zeros(0, 0)), seen, unreadable
