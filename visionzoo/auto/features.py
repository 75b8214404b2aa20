"""Features of a network's own pooling, as its head will read them.

Legend: N images, B batch, C channels, (H, W) pixels, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from visionzoo.auto.network import Network
from visionzoo.cache import Cache
from visionzoo.data.sources.base import Source
from visionzoo.inference.features import SourceFeatures, source_features
from visionzoo.inference.stream import Stream, Unreadable
from visionzoo.weights.fingerprint import model_fingerprint


def feature_stream(network: Network, device: torch.device) -> Stream:
    """From images to what the head reads, (B, D)."""
    model = network.model.to(device).eval()
    return Stream(model.embed_images, model.preprocess, device)


def feature_batch(device: torch.device) -> int:
    """Images sent through a network at a time."""
    return 32 if device.type == "cpu" else 128


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
