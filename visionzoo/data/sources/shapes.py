"""The built-in set ``shapes``: coloured shapes drawn on the fly from a seed.

One picture carries everything: its class (the shape), a caption ("a red circle") and a mask per object, so that
classification, CLIP and segmentation all have something to learn on a machine without a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from visionzoo.data.images import ImageInput
from visionzoo.data.sources.base import S, Source

KINDS = ("circle", "cross", "ring", "square", "star", "triangle")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "cyan": (40, 200, 220),
    "pink": (250, 140, 190),
}
#: Every (colour, kind), with neighbours differing in kind.
COMBINATIONS = tuple((colour, kind) for colour in COLOURS for kind in KINDS)

#: Pictures of the two splits of the set; ``shapes:N`` has N to train on.
TRAIN_LENGTH, VAL_LENGTH = 2000, 500

#: Shapes are drawn this many times larger, then averaged: smooth edges.
_OVERSAMPLE = 4


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture and all that is known of it. M objects, the largest first."""

    image: Image.Image  #: RGB, ``size`` x ``size``
    class_name: str  #: kind of the largest object
    caption: str  #: for example "a red circle and a blue star"
    masks: np.ndarray  #: (M, H, W) bool, the visible part of each object; no two overlap
    objects: tuple[tuple[str, str], ...]  #: (colour, kind) of each


def draw(
    seed: int,
    index: int,
    *,
    size: int = 64,
    objects: tuple[int, int] = (1, 1),
    combinations: Sequence[tuple[str, str]] = COMBINATIONS,
) -> Drawing:
    """Draw picture ``index`` of the set that ``seed`` names. A pure function of its arguments.

    Args:
        seed: at least 0.
        index: at least 0. The first object's (colour, kind) is ``combinations[index % len(combinations)]``, so that
            classes are balanced and known without drawing; everything else is random.
        size: pixels per edge, at least 16.
        objects: fewest and most objects in a picture.
        combinations: allowed (colour, kind); leave some out to test what a model makes of them.

    Raises:
        ValueError: for a size, range of objects or combination that cannot be drawn.
    """
    if size < 16 or not 1 <= objects[0] <= objects[1] or not combinations:
        raise ValueError(
            f"cannot draw size={size} (16 or more), objects={objects} (1 <= fewest <= most) of {combinations}"
        )
    for colour, kind in combinations:
        if colour not in COLOURS or kind not in KINDS:
            raise ValueError(f"unknown combination {(colour, kind)}; colours are {tuple(COLOURS)}, kinds are {KINDS}")
    rng = np.random.default_rng([seed, index])
    chosen = [combinations[index % len(combinations)]]
    for _ in range(int(rng.integers(objects[0], objects[1] + 1)) - 1):
        chosen.append(combinations[int(rng.integers(len(combinations)))])
    pixels = _background(rng, size)
    masks = np.zeros((len(chosen), size, size), dtype=bool)
    # Painted from the last to the first: the largest object, which gives the class, is never hidden.
    for k in reversed(range(len(chosen))):
        colour, kind = chosen[k]
        radius = size * (rng.uniform(0.22, 0.38) if k == 0 else rng.uniform(0.10, 0.16))
        centre = rng.uniform(radius, size - radius, size=2)
        cover = _cover(kind, centre, radius, rng.uniform(0, 360), size)
        paint = np.clip(np.array(COLOURS[colour]) + rng.integers(-20, 21, size=3), 0, 255)
        pixels += cover[:, :, None] * (paint - pixels)
        visible = cover >= 0.5
        masks[k + 1 :] &= ~visible
        masks[k] = visible
    seen = [k for k in range(len(chosen)) if masks[k].sum() >= 4]
    shown = tuple(chosen[k] for k in seen)
    return Drawing(
        image=Image.fromarray(np.rint(pixels).astype(np.uint8)),
        class_name=chosen[0][1],
        caption=describe(shown),
        masks=masks[seen],
        objects=shown,
    )


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float, a soft grey texture: colour says nothing about the class."""
    coarse = rng.integers(60, 200) + rng.normal(0, 12, size=(5, 5))
    smooth = Image.fromarray(coarse.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    grey = np.asarray(smooth, dtype=np.float64) + rng.normal(0, 4, size=(size, size))
    return np.repeat(np.clip(grey, 0, 255)[:, :, None], 3, axis=2)


def _cover(kind: str, centre: np.ndarray, radius: float, degrees: float, size: int) -> np.ndarray:
    """(size, size) float in 0..1, the share of each pixel inside the shape."""
    canvas = Image.new("L", (size * _OVERSAMPLE, size * _OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    x, y = centre * _OVERSAMPLE
    r = radius * _OVERSAMPLE
    if kind in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if kind == "ring":
            hole = 0.55 * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        angle = math.radians(degrees)
        corners = [
            (x + r * d * math.cos(angle + math.radians(a)), y + r * d * math.sin(angle + math.radians(a)))
            for a, d in _OUTLINES[kind]
        ]
        pen.polygon(corners, fill=255)
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255


def _cross_outline(arm: float = 0.36) -> list[tuple[float, float]]:
    corner, tip = math.degrees(math.atan2(arm, 1.0)), math.hypot(arm, 1.0)
    quarter = [(-corner, 1.0), (corner, 1.0), (45.0, arm * math.sqrt(2) / tip)]
    return [(angle + 90 * k, distance) for k in range(4) for angle, distance in quarter]


#: Corners of each polygon as (angle in degrees, distance as a share of the radius).
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(45.0 + 90 * k, 1.0) for k in range(4)],
    "triangle": [(120.0 * k, 1.0) for k in range(3)],
    "star": [(36.0 * k, 1.0 if k % 2 == 0 else 0.42) for k in range(10)],
    "cross": _cross_outline(),
}


def describe(objects: Sequence[tuple[str, str]]) -> str:
    """The caption of objects (colour, kind): "a red circle and a blue star"."""
    words = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}" for colour, kind in objects]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def shapes_length(path: str) -> int | None:
    """Training pictures of ``shapes`` or ``shapes:N``; None for any other path.

    Raises:
        ValueError: for an N that is not a whole number above 0.
    """
    name, colon, count = path.partition(":")
    if name != "shapes":
        return None
    if colon and (not count.isdigit() or int(count) < 1):
        raise ValueError(f"{path}: write shapes:N with N training pictures, 1 or more")
    return int(count) if colon else TRAIN_LENGTH


def shapes_splits(path: str, make: Callable[[int, int], S]) -> dict[str, S]:
    """The splits of ``shapes`` or ``shapes:N``; ``make`` gets how many pictures one has, and the first."""
    length = shapes_length(path)
    assert length is not None
    return {"train": make(length, 0), "val": make(VAL_LENGTH, length)}


class ShapesSource(Source):
    """``length`` pictures, labelled by the kind of their largest object."""

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        start: int = 0,
        size: int = 64,
        objects: tuple[int, int] = (1, 1),
        combinations: Sequence[tuple[str, str]] = COMBINATIONS,
    ) -> None:
        """
        Args:
            length: number of pictures.
            seed: names the set.
            start: index of the first picture; splits of one set take different ranges.
            size: pixels per edge.
            objects: fewest and most objects in a picture.
            combinations: allowed (colour, kind).
        """
        self.seed, self.start, self.size = seed, start, size
        self.objects_per_image, self.combinations = objects, tuple(combinations)
        self.classes = KINDS
        #: (N,) int64, position in ``combinations`` of the largest object of each picture.
        self.main_object = (np.arange(length) + start) % len(self.combinations)
        kinds = np.array([KINDS.index(kind) for _, kind in self.combinations], dtype=np.int64)
        self.targets = kinds[self.main_object]

    def drawing(self, i: int) -> Drawing:
        """Picture ``i`` and all that is known of it."""
        return draw(
            self.seed, self.start + i, size=self.size, objects=self.objects_per_image, combinations=self.combinations
        )

    def sample_id(self, i: int) -> str:
        """``shapes:``, the seed and the number of the picture."""
        return f"shapes:{self.seed}:{self.start + i}"

    def raw(self, i: int) -> ImageInput:
        """The picture, drawn now."""
        return self.drawing(i).image

    def stable_ids(self) -> Iterable[str]:
        """Names of the pictures, and settings that are not the usual ones."""
        yield from super().stable_ids()
        # A picture of the same name shows something else under other settings.
        if (settings := (self.size, self.objects_per_image, self.combinations)) != (64, (1, 1), COMBINATIONS):
            yield repr(settings)
