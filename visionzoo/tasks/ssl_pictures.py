"""What pretraining on views is shown by: views as they are trained on, the attention of heads, nearest neighbours.

Legend: B images of a sheet, N images among which neighbours are found, C channels, (H, W) pixels, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.backbones.vit import VisionTransformer
from visionzoo.runs.gallery import GalleryAbout, GalleryPicture, sheet_step, write_gallery
from visionzoo.tasks.pictures import side_by_side
from visionzoo.viz.sheets import contact_sheet

#: Images among which the nearest are looked for, how many of them are drawn, and views and heads at most.
AMONG, NEIGHBOURS, VIEWS, HEADS = 256, 3, 4, 6


def head_attention(backbone: Any, images: Tensor) -> list[np.ndarray]:
    """What the class token attends to in the last block, of normalised (B, C, H, W) images: for each of the first heads
    (B, H, W, 1) uint8, the largest weight white. Empty for a backbone without such a token."""
    if not isinstance(backbone, VisionTransformer) or not backbone.info.prefix_tokens:
        return []
    weights = backbone.attention_maps(images)[-1].float()  # (B, heads, P + N, P + N)
    cells = weights[:, :HEADS, 0, backbone.info.prefix_tokens :]
    grid = backbone(images).grid.shape[-2:]
    maps = (cells / cells.amax(-1, keepdim=True).clamp(min=1e-12)).unflatten(-1, grid)
    large = F.interpolate(maps, size=images.shape[-2:], mode="nearest").mul(255).round().byte()
    return [large[:, head, :, :, None].cpu().numpy() for head in range(large.shape[1])]


def nearest_places(features: Tensor, among: Tensor, own: Sequence[int], places: Sequence[int]) -> list[list[int]]:
    """For each of (B, D) features the rows of its nearest ``among`` (N, D), itself left out.

    Args:
        features, among: brought to length one here.
        own, places: positions in the data of both.
    """
    cosines = F.normalize(features, dim=1) @ F.normalize(among, dim=1).T
    same = torch.tensor(own)[:, None] == torch.tensor(places)[None, :]
    found = cosines.cpu().masked_fill(same, float("-inf"))
    return found.topk(min(NEIGHBOURS, found.shape[1] - 1), dim=1).indices.tolist()  # type: ignore[no-any-return]


def view_sheet(columns: Sequence[tuple[str, Iterable[np.ndarray]]], out: Path, title: str) -> Path:
    """Draw a row for each image, and keep the rows one by one for a page.

    Args:
        columns: name, and a picture (H, W, 1 or 3) uint8 of each image.
        out: the picture.
        title: above the sheet.
    """
    rows = list(zip(*(pictures for _, pictures in columns), strict=True))
    kept = [
        GalleryPicture("", "an image, its views, attention of heads, and nearest images", (), side_by_side(row))
        for row in rows
    ]
    note = ", ".join(dict.fromkeys(name.rstrip("0123456789 ") for name, _ in columns))
    about = GalleryAbout(section="Views", note=f"Each is: {note}", wide=True, step=sheet_step(out))
    write_gallery(out.with_suffix(".parquet"), kept, about)
    captions = [(name,) for _ in rows for name, _ in columns]
    return contact_sheet([t for row in rows for t in row], captions, out, title=title, columns=len(columns), tile=128)
