"""What one object is asked for by.

Legend: P points, (height, width) pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PromptedObject(NamedTuple):
    """What one object was asked for by."""

    points: Sequence[tuple[float, float]] = ()
    labels: Sequence[float] = ()
    box: Sequence[float] | None = None
    text: str | None = None

    def check(self, size: tuple[int, int]) -> None:
        """Raises ValueError for no prompt at all, and one that lies outside a picture of (height, width)."""
        from visionzoo.inference.sam_predictor import check_box, check_points  # the page is there before any SAM is

        if not len(self.points) and self.box is None and not self.text:
            raise ValueError("say what to segment: a point, a box or a name")
        if len(self.points):
            check_points(self.points, self.labels, size)
        if self.box is not None:
            check_box(self.box, size)
