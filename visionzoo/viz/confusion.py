"""A confusion matrix that can be read with 2 classes and with 1000."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visionzoo.viz.figure import new_figure, plain, save_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNTS_UP_TO = 25  #: classes for which a count fits into each cell
NAMES_UP_TO = 60  #: classes for which every name fits beside its row; beyond, every n-th is shown
THICKEN_FROM = 300  #: classes from which a cell is so small that single mistakes are drawn larger than they are
PAIRS = 18  #: most frequent confusions, listed where counts do not fit


def confusion_matrix(
    matrix: np.ndarray, classes: Sequence[str], out: str | Path, title: str = "Confusion matrix"
) -> Path:
    """Draw counts, coloured by their share of the true class.

    Up to 25 classes every cell shows its count; with more, the most frequent confusions are listed beside the matrix,
    and names are thinned so that they never overlap.

    Args:
        matrix: (K, K) counts; rows true, columns predicted; numpy or a CPU tensor.
        classes: K names.
        out: where the PNG goes.

    Raises:
        ValueError: if the matrix is not square or the names do not fit it.
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or len(classes) != len(counts):
        raise ValueError(f"a confusion matrix of shape {counts.shape} does not fit {len(classes)} class names")
    k = len(counts)
    names = [shorten(str(c), 22) for c in classes]
    cells = max(3.2, min(9.0, 0.62 * k if k <= COUNTS_UP_TO else 9.0))
    # the cells fill the figure and everything else hangs outside; saving tight gives each text the room that it takes
    figure = new_figure(cells, cells, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    _draw_cells(figure, axes, counts, 1 / cells)
    if k > COUNTS_UP_TO:
        _list_pairs(axes.inset_axes((1 + 1.3 / cells, 0, 3.6 / cells, 1)), counts, names)
    _name_axes(axes, names)
    if k <= COUNTS_UP_TO:
        _write_counts(axes, counts)
    accuracy = f"{np.trace(counts) / counts.sum():.2%} of {int(counts.sum()):,}" if counts.sum() else "no images"
    axes.set_title(f"{plain(title)}: {accuracy}" + (" right" if counts.sum() else ""), fontsize=12, loc="left", pad=10)
    return save_figure(figure, out, tight=True)


def _shares(counts: np.ndarray) -> np.ma.MaskedArray:
    """(K, K) share of each true class; rows without an image are masked."""
    totals = counts.sum(1, keepdims=True)
    return np.ma.masked_where(np.broadcast_to(totals == 0, counts.shape), counts / np.maximum(totals, 1))


def _thicken(shares: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """Spread each cell to its neighbours where a cell is about a pixel, or single mistakes would not be seen."""
    padded = np.pad(shares.filled(0), 1)
    k = len(shares)
    spread = np.max([padded[i : i + k, j : j + k] for i in range(3) for j in range(3)], axis=0)
    return np.ma.masked_where(shares.mask, spread)


def _draw_cells(figure: Figure, axes: Axes, counts: np.ndarray, inch: float) -> None:
    """Cells and colour bar; ``inch`` is an inch as a share of the axes."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    # with many classes the errors are thin shares of a row: a square root lifts them out of the white
    gamma = 1.0 if len(counts) <= COUNTS_UP_TO else 0.5
    colours = colormaps["Blues"].with_extremes(bad="#e3e3e3")
    shares = _shares(counts)
    if len(counts) > THICKEN_FROM:
        shares = _thicken(shares)
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(gamma, 0, 1))
    ticks = [0, 0.05, 0.25, 0.5, 1] if gamma < 1 else [0, 0.25, 0.5, 0.75, 1]
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.15 * inch, 0.2, 0.15 * inch, 0.6)), ticks=ticks)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def _name_axes(axes: Axes, names: list[str]) -> None:
    k = len(names)
    size = 10 if k <= COUNTS_UP_TO else 7.5
    shown = np.arange(0, k, 1 if k <= NAMES_UP_TO else -(-k // 40))
    labels = [plain(names[i]) for i in shown]
    axes.set_yticks(shown, labels, fontsize=size)
    upright = max(len(n) for n in labels) > 3
    axes.set_xticks(shown, labels, fontsize=size, rotation=90 if upright else 0)
    axes.tick_params(length=0 if k <= NAMES_UP_TO else 2)
    if k <= COUNTS_UP_TO:
        axes.set_xticks(np.arange(k - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(k - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _write_counts(axes: Axes, counts: np.ndarray) -> None:
    shares = _shares(counts).filled(0)
    digits = len(str(int(counts.max()))) if counts.size else 1
    size = min(11.0, 26.0 / max(digits, 2))
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "#26323f"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", fontsize=size, color=colour)


def _pairs(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """(true, predicted, count) of the most frequent confusions."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    return [(int(i // len(wrong)), int(i % len(wrong)), int(wrong.flat[i])) for i in order if wrong.flat[i] > 0]


def _list_pairs(axes: Axes, counts: np.ndarray, names: list[str]) -> None:
    axes.set_axis_off()
    axes.set_title("Most frequent confusions", fontsize=11, loc="left", fontweight="bold", pad=10)
    totals = counts.sum(1)
    for line, (true, predicted, count) in enumerate(_pairs(counts)):
        y = 1 - (line + 0.5) / PAIRS
        axes.text(0, y, plain(f"{names[true]} → {names[predicted]}"), fontsize=9, va="center", transform=axes.transAxes)
        axes.text(
            0, y - 0.021, f"{count:,} of {int(totals[true]):,}", fontsize=8, va="center", color="#6a737d",
            transform=axes.transAxes,
        )  # fmt: skip
