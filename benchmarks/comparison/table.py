"""One table as text, and how a number with its spread is written in it."""

from __future__ import annotations

from dataclasses import dataclass

from comparison.summary import Spread
from visionzoo.metrics.differences import Difference


@dataclass(frozen=True)
class Table:
    """A title, a sentence on how to read it, and cells."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.note, ""] if self.note else [f"## {self.title}", ""]
        lines += ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in self.rows), ""])


def share(fraction: float) -> str:
    """What part of the training images: "All images", or how many of a hundred."""
    return "All images" if fraction == 1 else f"{100 * fraction:g} % of the images"


def percent(spread: Spread | None) -> str:
    """``71.2 ± 0.4``: mean and standard deviation over seeds, in per cent."""
    if spread is None:
        return ""
    text = f"{100 * spread.mean:.1f}"
    return text if spread.deviation is None else f"{text} ± {100 * spread.deviation:.1f}"


def of_seeds(spread: Spread, planned: int) -> str:
    """:func:`percent`, which says so where trainings are missing."""
    missing = "" if spread.count >= planned else f" ({spread.count} of {planned} seeds)"
    return percent(spread) + missing


def points(seen: Difference) -> str:
    """``+1.2 (-0.3 to +2.7)``: a difference and its interval, in points."""
    return f"{100 * seen.value:+.1f} ({100 * seen.low:+.1f} to {100 * seen.high:+.1f})"


def probability(p: float) -> str:
    """``0.013``, or ``< 0.001``: no test finds that a difference is impossible."""
    text = f"{p:.3f}"
    return "< 0.001" if text == "0.000" else text


def change(spread: Spread) -> str:
    """``-0.3 ± 0.1``: mean and standard deviation over seeds of a difference of shares, in points."""
    text = f"{100 * spread.mean:+.1f}"
    return text if spread.deviation is None else f"{text} ± {100 * spread.deviation:.1f}"


def numbers(spread: Spread, digits: int) -> str:
    """``3.2 ± 0.1``: mean and standard deviation over seeds."""
    text = f"{spread.mean:,.{digits}f}"
    return text if spread.deviation is None else f"{text} ± {spread.deviation:,.{digits}f}"
