"""The 15 corruptions of ImageNet-C at five severities, as its authors define them (arXiv 1903.12261, section 3, and the
code they released), and the mean corruption error.

They act on (224, 224, 3) uint8 images, after resize and crop and before normalisation; strengths are in pixels of that
size. All that is random is drawn from ``rng``. ``comparison.corruptions`` has a table for other sizes.

Legend: (H, W) pixels, an image x is (H, W, 3) float in [0, 1].
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)
EDGE = 224
Pixels = np.ndarray


def corrupt(image: np.ndarray, name: str, severity: int, rng: Any) -> np.ndarray:
    """A corrupted copy, (224, 224, 3) uint8.

    Args:
        image: (224, 224, 3) uint8 RGB.
        name: a key of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        rng: numpy's, a ``Generator`` or a ``RandomState``.

    Raises:
        ValueError: for another name, severity or size; for ``frost`` without its photographs.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"{name!r} at severity {severity} is none of {', '.join(CORRUPTIONS)} at 1 to 5")
    if image.shape != (EDGE, EDGE, 3):
        raise ValueError(f"ImageNet-C is defined for ({EDGE}, {EDGE}, 3) images, not {image.shape}")
    x = CORRUPTIONS[name](image.astype(np.float64) / 255, severity - 1, rng)
    return np.uint8(np.clip(x, 0, 1) * 255)  # cut off, not rounded, as the released images are


def _gaussian(x: np.ndarray, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    each = (sigma, sigma, 0) if x.ndim == 3 else (sigma, sigma)
    return ndimage.gaussian_filter(x, each, mode=mode, truncate=truncate)


def gaussian_noise(x: Pixels, s: int, rng: Any) -> Pixels:
    return x + rng.normal(size=x.shape, scale=(0.08, 0.12, 0.18, 0.26, 0.38)[s])


def shot_noise(x: Pixels, s: int, rng: Any) -> Pixels:
    photons = (60, 25, 12, 5, 3)[s]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Pixels, s: int, rng: Any) -> Pixels:
    """Salt and pepper, in each channel by itself."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[s]
    hit, salt = rng.uniform(size=x.shape) < amount, rng.uniform(size=x.shape) < 0.5
    return np.where(hit, salt.astype(float), x)


def defocus_blur(x: Pixels, s: int, rng: Any) -> Pixels:  # noqa: ARG001
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[s]
    reach, edge = (8, 3) if radius <= 8 else (radius, 5)
    along = np.arange(-reach, reach + 1)
    disk = (along[:, None] ** 2 + along[None] ** 2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (edge, edge), sigmaX=alias)
    return cv2.filter2D(x, -1, kernel)


def glass_blur(x: Pixels, s: int, rng: Any) -> Pixels:
    """Each pixel takes the value of one nearby. The authors meant to swap two; their images have copies."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[s]
    height, width = x.shape[:2]
    pixels = np.uint8(_gaussian(x, sigma) * 255).reshape(-1, 3)
    place = list(range(height * width))
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    for _ in range(rounds):
        count = len(rows) * len(columns)
        moves = (rng.uniform(size=(count, 2)) * 2 * reach).astype(int) - reach
        steps = iter((moves[:, 0] + moves[:, 1] * width).tolist())  # the first is down a row where the authors' is too
        for h in rows:
            for w in columns:
                place[h * width + w] = place[h * width + w + next(steps)]
    return _gaussian(pixels[place].reshape(x.shape) / 255, sigma)


def motion_blur(x: Pixels, s: int, rng: Any) -> Pixels:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[s]
    return _moved(x, radius, sigma, rng.uniform(-45, 45))


def _moved(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Copies along a line, fading as half a Gaussian; a copy's border is drawn out."""
    width = 2 * radius + 1
    kernel = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    found = np.zeros(x.shape)
    for i, weight in enumerate(kernel / kernel.sum()):
        dy, dx = -math.ceil(i * down - 0.5), -math.ceil(i * right - 0.5)
        if abs(dy) >= x.shape[0] or abs(dx) >= x.shape[1]:
            break
        rows = np.clip(np.arange(x.shape[0]) - dy, 0, x.shape[0] - 1)
        columns = np.clip(np.arange(x.shape[1]) - dx, 0, x.shape[1] - 1)
        found += weight * x[rows][:, columns]
    return found


def zoom_blur(x: Pixels, s: int, rng: Any) -> Pixels:  # noqa: ARG001
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[s]
    factors = np.arange(1, end, step)
    zoomed = [_zoomed(x, factor)[: x.shape[0], : x.shape[1]] for factor in factors]
    return (x + sum(zoomed)) / (len(factors) + 1)


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a layer, enlarged."""
    height, width = (math.ceil(n / factor) for n in x.shape[:2])
    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
    part = x[top : top + height, left : left + width]
    return ndimage.zoom(part, (factor, factor, 1)[: x.ndim], order=1)


def snow(x: Pixels, s: int, rng: Any) -> Pixels:
    loc, scale, zoom, least, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[s]
    layer = _zoomed(rng.normal(size=x.shape[:2], loc=loc, scale=scale), zoom)
    layer = np.clip(np.where(layer < least, 0, layer), 0, 1)
    layer = _moved(layer, radius, sigma, rng.uniform(-135, -45))
    layer = (np.round(layer * 255).astype(np.uint8) / 255)[: x.shape[0], : x.shape[1], None]
    grey = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    return kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5) + layer + np.rot90(layer, k=2)


def frost(x: Pixels, s: int, rng: Any) -> Pixels:
    """A photograph of frost on top."""
    kept, added = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[s]
    files = frost_pictures()
    if not files:
        raise ValueError(
            "frost needs its authors' photographs: pip install --no-deps imagecorruptions, or leave it out"
        )
    with Image.open(files[int(rng.uniform() * 5)]) as opened:
        picture = np.array(opened.convert("RGB"))
    scale = 1.1 * max(1.0, *(n / m for n, m in zip(x.shape[:2], picture.shape[:2], strict=True)))
    size = math.ceil(picture.shape[1] * scale), math.ceil(picture.shape[0] * scale)
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    top, left = (int(rng.uniform() * (picture.shape[i] - x.shape[i])) for i in range(2))
    return kept * x + added * picture[top : top + x.shape[0], left : left + x.shape[1]] / 255


def frost_pictures() -> list[Path]:
    """The photographs, out of the package imagecorruptions (Apache 2.0) where it is installed."""
    package = importlib.util.find_spec("imagecorruptions")
    places = package.submodule_search_locations if package is not None else None
    return sorted(Path(places[0], "frost").glob("frost*")) if places else []


def fog(x: Pixels, s: int, rng: Any) -> Pixels:
    thick, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[s]
    brightest = x.max()
    size = 1 << (max(x.shape[:2]) - 1).bit_length()
    mist = _plasma(size, decay, rng)[: x.shape[0], : x.shape[1], None]
    return (x + thick * mist) * brightest / (brightest + thick)


def _plasma(size: int, decay: float, rng: Any) -> np.ndarray:
    """(size, size) heights in [0, 1], diamonds and squares; ``size`` is a power of 2, and the borders meet."""
    heights = np.zeros((size, size))
    step, wibble = size, 100.0

    def mean(sums: np.ndarray) -> np.ndarray:
        return sums / 4 + wibble * rng.uniform(-wibble, wibble, sums.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        sums = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = mean(sums + np.roll(sums, -1, 1))
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        heights[::step, half::step] = mean(middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = mean(middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(x: Pixels, s: int, rng: Any) -> Pixels:  # noqa: ARG001
    """More of HSV's value: hue and saturation stay, so the channels grow by one factor; black becomes grey."""
    value = x.max(2, keepdims=True)
    more = np.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[s], 0, 1)
    return np.where(value > 0, x * more / np.where(value > 0, value, 1), more)


def contrast(x: Pixels, s: int, rng: Any) -> Pixels:  # noqa: ARG001
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[s] + mean


def elastic_transform(x: Pixels, s: int, rng: Any) -> Pixels:
    """The version that its authors' later code has: 250 pixels stand for what 244 were."""
    alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[s]
    height, width = x.shape[:2]
    most = 0.005 * height
    dx, dy = (
        ndimage.gaussian_filter(
            rng.uniform(-most, most, size=(height, width)), (0.01 * height, 0.01 * width), mode="reflect", truncate=3
        )
        * alpha
        for _ in range(2)
    )
    rows, columns = np.mgrid[:height, :width]
    places = [rows + dy, columns + dx]
    return np.stack([ndimage.map_coordinates(x[..., c], places, order=1, mode="reflect") for c in range(3)], 2)


def pixelate(x: Pixels, s: int, rng: Any) -> Pixels:  # noqa: ARG001
    share, image = (0.6, 0.5, 0.4, 0.3, 0.25)[s], Image.fromarray(np.uint8(np.round(x * 255)))
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return np.array(small.resize(image.size, Image.Resampling.NEAREST)) / 255


def jpeg_compression(x: Pixels, s: int, rng: Any) -> Pixels:  # noqa: ARG001
    written = io.BytesIO()
    Image.fromarray(np.uint8(np.round(x * 255))).save(written, "JPEG", quality=(25, 18, 15, 10, 7)[s])
    return np.array(Image.open(written)) / 255


#: In the order of the paper's table.
CORRUPTIONS: dict[str, Callable[[Pixels, int, Any], Pixels]] = {
    f.__name__: f
    for f in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]
) -> tuple[float, dict[str, float]]:
    """mCE in per cent, and the error of each corruption: the sum over severities, of the baseline's (section 4.1).

    Args:
        errors: corruption -> top-1 error at each severity.
        baseline: the same of the network that has 100 by definition, AlexNet in the paper.

    Raises:
        ValueError: where the two have other corruptions or severities, or the baseline makes no mistake at one.
    """
    if errors.keys() != baseline.keys() or any(len(errors[k]) != len(baseline[k]) for k in errors) or not errors:
        raise ValueError(f"errors of {sorted(errors)} cannot be held against those of {sorted(baseline)}")
    if perfect := [name for name, five in baseline.items() if sum(five) == 0]:
        raise ValueError(f"the baseline makes no mistake under {perfect[0]}; choose a weaker one")
    each = {name: 100 * sum(errors[name]) / sum(baseline[name]) for name in errors}
    return sum(each.values()) / len(each), each
