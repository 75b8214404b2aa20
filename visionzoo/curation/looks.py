"""What one pass over the pixels says of each image: its size, light, sharpness, colours, and a thumbnail.

Legend: N images, B batch, (H, W) pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzoo.cache import Cache
from visionzoo.data.sources.base import Source
from visionzoo.inference.features import SourceFeatures, source_features
from visionzoo.inference.stream import Stream
from visionzoo.types import Preprocess

#: Edge of a thumbnail.
EDGE = 32
#: Longer edge at which sharpness is measured, so that it can be compared between sizes.
_MEASURED = 256
#: What is measured, in order; what each is worth in units of its own.
MEASURES = ("width", "height", "brightness", "contrast", "sharpness", "colour")
#: Part of the keys of the cache: another number when what is measured changes.
_VERSION = 1


@dataclass(frozen=True)
class Looks:
    """What was measured of N images.

    ``brightness`` (mean) and ``contrast`` (standard deviation) are of grey values in [0, 1]. ``sharpness`` is the
    standard deviation of the Laplacian over that of the grey values. ``colour`` is the mean of the greatest channel
    less the least.
    """

    measures: np.ndarray  #: (N, 6) float32, see :data:`MEASURES`
    thumbnails: np.ndarray  #: (N, EDGE, EDGE) uint8 grey values of the whole picture, squashed

    def __getattr__(self, name: str) -> np.ndarray:
        """(N,) values of one measure."""
        if name not in MEASURES:
            raise AttributeError(name)
        values: np.ndarray = self.measures[:, MEASURES.index(name)]
        return values

    @cached_property
    def hashes(self) -> np.ndarray:
        """(N, 63) float32 of -1 and 1: the perceptual hash of each image."""
        return perceptual_hashes(self.thumbnails)

    def take(self, rows: np.ndarray) -> Looks:
        """Those of some images, in the order of ``rows``."""
        return Looks(self.measures[rows], self.thumbnails[rows])


class _LookStream(Stream):
    """As :class:`Stream`, with numbers in the place of pixels."""

    def __init__(self) -> None:
        nothing = Preprocess(image_size=(EDGE, EDGE), mean=(0.0,) * 3, std=(1.0,) * 3)
        super().__init__(lambda values: values, nothing, torch.device("cpu"), raw=True)
        self.transform = look_at  # type: ignore[assignment]


def look_at(image: Image.Image) -> Tensor:
    """(6 + EDGE * EDGE,) what is measured of an RGB image, and its thumbnail."""
    width, height = image.size
    scale = min(1.0, _MEASURED / max(width, height))
    small = image.resize((max(3, round(width * scale)), max(3, round(height * scale))), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), np.float32) / 255
    rgb = np.asarray(small)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    contrast = float(grey.std())
    colour = float((rgb.max(2).astype(np.float32) - rgb.min(2)).mean()) / 255
    sharpness = float(laplacian.std()) / max(contrast, 1e-3)
    thumbnail = np.asarray(small.convert("L").resize((EDGE, EDGE), Image.Resampling.BOX), np.float32)
    measures = np.array([width, height, grey.mean(), contrast, sharpness, colour], np.float32)
    return torch.from_numpy(np.concatenate([measures, thumbnail.ravel()]))


def look(source: Source, cache: Cache, *, batch_size: int = 64, title: str = "pixels") -> tuple[Looks, SourceFeatures]:
    """Look at every image of a source; what was seen is kept, so that a pass that was broken off goes on.

    Args:
        source: the images, labelled or not.
        cache: of features.
        batch_size: images read at a time.
        title: of the progress bar.

    Returns:
        what was measured, and where, and which could not be read.
    """
    store = Cache(cache.kind, cache.folder, of=f"looks {_VERSION}")
    found = source_features(_LookStream(), store, source, batch_size=batch_size, title=title, unlabelled=True)
    return looks_of(found.values), found


def looks_of(values: np.ndarray) -> Looks:
    """Out of (N, 6 + EDGE * EDGE) numbers as :func:`look_at` gives them."""
    if not len(values):
        return Looks(np.zeros((0, len(MEASURES)), np.float32), np.zeros((0, EDGE, EDGE), np.uint8))
    count = len(MEASURES)
    return Looks(values[:, :count], values[:, count:].reshape(-1, EDGE, EDGE).astype(np.uint8))


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 63) float32 of -1 and 1: signs of the lowest frequencies about their median, the mean left out.

    Two hashes agree in as many bits as half of 63 and their product. Those of the mirrored picture come of
    :func:`mirrored_hashes`.

    Args:
        thumbnails: (N, EDGE, EDGE) grey values.
    """
    return _signs(_frequencies(thumbnails))


def mirrored_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 63) float32, as :func:`perceptual_hashes`, of the pictures seen in a mirror.

    Args:
        thumbnails: (N, EDGE, EDGE) grey values.
    """
    return _signs(_frequencies(thumbnails[:, :, ::-1]))


def _frequencies(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 8, 8) the lowest of the cosine transform."""
    place = (np.arange(EDGE) + 0.5) * np.pi / EDGE
    basis = np.cos(place[None] * np.arange(8)[:, None]).astype(np.float32)
    frequencies: np.ndarray = np.einsum("ai,nij,bj->nab", basis, thumbnails.astype(np.float32), basis, optimize=True)
    return frequencies


def _signs(frequencies: np.ndarray) -> np.ndarray:
    values = frequencies.reshape(len(frequencies), 64)[:, 1:]
    return np.where(values > np.median(values, axis=1, keepdims=True), 1, -1).astype(np.float32)
