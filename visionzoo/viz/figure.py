"""A matplotlib figure without pyplot: no global state, no window, safe in threads and in training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from visionzoo.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#2f6db5", "#e07b24", "#3c9a5f", "#8a8f98"
DPI = 110


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of the given size in inches, drawn by Agg; ``constrained`` keeps its parts from overlapping."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def quiet_axes(axes: Axes) -> None:
    """Take the frame away and put a light grid behind the lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, out: str | Path, *, tight: bool = False) -> Path:
    """Write a figure to ``out`` (the suffix chooses the format), whole or not at all.

    Args:
        figure: what to write.
        out: where it goes.
        tight: fit the picture to what was drawn, also outside of the figure's own size.
    """
    with atomic_path(out) as temporary:
        figure.savefig(temporary, bbox_inches="tight" if tight else None, pad_inches=0.2)
    return Path(out)


def plain(text: str) -> str:
    """``text`` as matplotlib draws it literally: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def shorten(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters, the end replaced by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
