"""Held-out objects by how well they were found, and their pictures for a page.

Legend: N objects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visionzoo.runs.gallery import GalleryAbout, GalleryPicture
from visionzoo.tasks.gathering import from_all_ranks
from visionzoo.tasks.pictures import side_by_side
from visionzoo.tasks.prompting import PromptAnswers
from visionzoo.viz.segmentation import SegmentRow, segmentation_tiles

#: Objects that are shown of the best, of those in the middle, and of the worst.
SHOWN = 6
NOTE = "Each is the object, the mask after one and after three clicks (green on it, red beside it), and from a box."


class ScoredObjects:
    """How well each object was found; an object takes 40 bytes."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, position: int, answers: PromptAnswers) -> None:
        """The objects of the image at ``position``."""
        ious = torch.stack([answers.click_ious[:, 0], answers.click_ious[:, 2], answers.box_iou], 1).double().cpu()
        number = torch.arange(len(ious)).double()
        self._rows.append(torch.cat([torch.full((len(ious), 1), float(position)), number[:, None], ious], 1))

    def finish(self) -> Tensor:
        """(N, 5) of all ranks, in the order of the data: position, number in its image, IoU after 1 and 3 clicks, and
        from a box."""
        rows = torch.cat([torch.empty(0, 5, dtype=torch.float64), *from_all_ranks(self._rows)])
        return rows[(rows[:, 0] * (rows[:, 1].max() + 1 if len(rows) else 1) + rows[:, 1]).argsort()]


def choose_objects(scored: Tensor) -> dict[str, list[tuple[int, int]]]:
    """(N, 5) of :class:`ScoredObjects` -> position and number of the worst, of some in the middle, and of the best, by
    the IoU after one click."""
    order = scored[:, 2].argsort(stable=True)
    places = [(int(p), int(n)) for p, n in scored[order, :2].tolist()]
    if len(places) <= 3 * SHOWN:
        return {"By IoU after one click, the worst first": places}
    middle = (len(places) - SHOWN) // 2
    return {
        "Worst after one click": places[:SHOWN],
        "In the middle": places[middle : middle + SHOWN],
        "Best after one click": places[-SHOWN:][::-1],
    }


def object_picture(group: str, row: SegmentRow, position: int) -> GalleryPicture:
    """All pictures of one object, side by side."""
    tiles = segmentation_tiles(row)
    name = row.name or "object"
    lines = [(" · ".join([name, *(text for _, text in tiles[1:])]), "")]
    return GalleryPicture(
        group, f"{name} and its masks", lines, side_by_side([tile for tile, _ in tiles], 176), position
    )


def masks_about(scored: Tensor) -> GalleryAbout:
    """The note, and the share of objects (N, 5) that reach each IoU."""
    columns = (("1 click", scored[:, 2]), ("3 clicks", scored[:, 3]), ("box", scored[:, 4]))
    return GalleryAbout(
        section="Masks",
        note=f"{len(scored):,} held-out objects. {NOTE}",
        wide=True,
        curves_title="Objects with at least this IoU, in %",
        curves_x="IoU",
        curves=tuple((name, _share(values)) for name, values in columns),
    )


def _share(values: Tensor) -> tuple[tuple[float, float], ...]:
    return tuple((k / 20, 100 * float((values >= k / 20).double().mean())) for k in range(21))


def sheet_about(step: int) -> GalleryAbout:
    """Of a sheet that is drawn while it learns."""
    return GalleryAbout(section="Masks", note=NOTE, wide=True, step=step)
