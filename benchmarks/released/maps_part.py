"""The part of the page that shows where models look: pictures under their maps, and how far maps agree."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from released.maps import KINDS, agreement
from visionzoo.report.components import Paragraph, PictureFigure, SortedTable, Strip, TableCell, embedded

#: Pictures that are shown, of those that are compared, and pixels of their edges.
SHOWN, EDGE = 6, 144


def where_they_look(found: dict[str, dict[str, Any]], pictures: Sequence[np.ndarray]) -> list[Any]:
    """Components: a strip for each of some pictures, a table of all pairs of maps, and what could not be drawn.

    Args:
        found: model -> look -> finding.
        pictures: (H, W, 3) uint8, which the findings are of.
    """
    having = {label: looks["maps"] for label, looks in found.items() if "maps" in looks}
    if not having:
        return []
    parts: list[Any] = [
        Paragraph(
            "Grad-CAM (arXiv 1610.02391): where the evidence for a model's own answer is. Attention (rolled out, arXiv "
            "2005.00928): what it has looked at, whatever it answers. Both say where, not why.",
            "note",
        )
    ]
    for place in np.unique(np.linspace(0, len(pictures) - 1, SHOWN).round().astype(int)).tolist():
        figures = [PictureFigure(_picture(pictures[place]), "the picture", [("the picture", "quiet")])]
        for label, maps in having.items():
            for kind, name in KINDS.items():
                if not maps[kind]:
                    continue
                lines = [(label, ""), (f"{name}: {maps['answers'][place]}", "quiet")]
                heat = np.array(maps[kind][place])
                figures.append(PictureFigure(_picture(pictures[place], heat), f"{name} of {label}", lines))
        parts.append(Strip("", "", figures))
    parts.append(_pairs(having))
    parts += [
        Paragraph(f"{label}, {KINDS[kind]}: {why}", "note")
        for label, maps in having.items()
        for kind, why in maps["left_out"].items()
    ]
    return parts


def _pairs(having: dict[str, dict[str, Any]]) -> SortedTable:
    maps = [(label, kind, one[kind]) for label, one in having.items() for kind in KINDS if one[kind]]
    rows = []
    for i, j in combinations(range(len(maps)), 2):
        seen = agreement(maps[i][2], maps[j][2])
        if seen is None:
            continue
        mean, deviation, count = seen
        names = [TableCell(text) for k in (i, j) for text in (maps[k][0], KINDS[maps[k][1]])]
        numbers = [
            TableCell(f"{mean:.2f}", mean),
            TableCell(f"{deviation:.2f}", deviation),
            TableCell(f"{count}", count),
        ]
        rows.append([*names, *numbers])
    columns = [("one", False), ("its map", False), ("other", False), ("its map ", False)]
    columns += [("rank correlation", True), ("deviation", True), ("pictures", True)]
    caption = (
        "Spearman's correlation of two maps of the same picture, mean over pictures; 1 is the same order of places."
    )
    return SortedTable("maps", caption, columns, rows, searched=True)


def _picture(picture: np.ndarray, heat: np.ndarray | None = None) -> str:
    """A picture, under its map where there is one, as it stands in the page."""
    image = Image.fromarray(picture).resize((EDGE, EDGE), Image.Resampling.LANCZOS)
    if heat is not None:
        from matplotlib import colormaps

        heat = (heat - heat.min()) / max(np.ptp(heat), 1e-12)  # the least place is dark, the highest bright
        smooth = Image.fromarray(heat.astype(np.float32)).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
        colours = colormaps["inferno"](np.clip(np.asarray(smooth), 0, 1))[..., :3]
        image = Image.fromarray(np.uint8(np.rint(0.4 * np.asarray(image) + 0.6 * 255 * colours)))
    written = io.BytesIO()
    image.save(written, "WEBP", quality=80)
    return embedded(written.getvalue())
