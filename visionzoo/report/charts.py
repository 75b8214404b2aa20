"""Charts as SVG, drawn before they are looked at; a script only says values under the pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

#: Of the drawing, in its own units: about pixels where it has the width of a phone.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 30
#: Points of a line in the page, at most. More are put together by their means.
POINTS = 240


@dataclass(frozen=True)
class ChartLine:
    """Values over x."""

    name: str
    points: Sequence[tuple[float, float]]  #: (x, y), x rising
    tone: str = "one"  #: one, two, three or quiet
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class ChartTick:
    """A number at an axis."""

    at: float  #: in units of the drawing
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines in one pair of axes.

    Attributes:
        bounds: of the values (lowest, highest), where they do not follow from the lines.
        across: of x, likewise.
    """

    id: str
    title: str
    lines: Sequence[ChartLine]
    x_name: str = "step"
    y_name: str = ""
    note: str = ""
    bounds: tuple[float, float] | None = None
    across: tuple[float, float] | None = None
    kind: ClassVar[str] = "chart"
    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT

    @cached_property
    def drawn(self) -> list[tuple[ChartLine, list[tuple[float, float]]]]:
        """Lines that have points, with as many as are drawn."""
        return [(line, _thinned(line.points)) for line in self.lines if line.points]

    @cached_property
    def x_axis(self) -> tuple[float, float]:
        """From where to where x goes."""
        return self.across or _span([x for _, points in self.drawn for x, _ in points], margin=0.0)

    @cached_property
    def y_axis(self) -> tuple[float, float]:
        """From where to where the values go."""
        return self.bounds or _span([y for _, points in self.drawn for _, y in points], margin=0.06)

    def x(self, value: float) -> float:
        """Where it is drawn."""
        low, high = self.x_axis
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Where it is drawn."""
        low, high = self.y_axis
        value = min(max(value, low), high)
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    @property
    def paths(self) -> list[tuple[ChartLine, str, list[tuple[float, float]]]]:
        """Each line, its SVG path, and where its dots are."""
        found = []
        for line, points in self.drawn:
            places = [(self.x(x), self.y(y)) for x, y in points]
            path = "M" + "L".join(f"{x} {y}" for x, y in places)
            found.append((line, path, places if line.dots or len(places) == 1 else []))
        return found

    @property
    def x_ticks(self) -> list[ChartTick]:
        """Numbers under the drawing."""
        return [ChartTick(self.x(v), text) for v, text in _ticks(*self.x_axis, most=5)]

    @property
    def y_ticks(self) -> list[ChartTick]:
        """Numbers beside it."""
        return [ChartTick(self.y(v), text) for v, text in _ticks(*self.y_axis, most=5)]

    @property
    def summary(self) -> str:
        """What somebody hears who does not see it."""
        ends = [f"{line.name} ends at {number(points[-1][1])}" for line, points in self.drawn]
        return f"{self.title} over {self.x_name}: {'; '.join(ends)}"

    def data(self) -> dict[str, Any]:
        """What the script needs."""
        lines = [
            {
                "name": line.name,
                "tone": line.tone,
                "x": [number(x) for x, _ in points],
                "y": [number(y) for _, y in points],
                "at": [[self.x(x), self.y(y)] for x, y in points],
            }
            for line, points in self.drawn
        ]
        return {"x_name": self.x_name, "width": WIDTH, "top": TOP, "bottom": HEIGHT - BOTTOM, "lines": lines}


def number(value: float) -> str:
    """Four digits, as people write them."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= POINTS:
        return list(points)
    edges = [round(i * len(points) / POINTS) for i in range(POINTS + 1)]
    parts = [points[a:b] for a, b in pairwise(edges)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        return low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round numbers inside a span."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [(k * step, f"{k * step:.6g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]
