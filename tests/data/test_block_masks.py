"""Which patches are hidden: blocks, as many as asked for, and a pure function of the key."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from visionzoo.data.block_masks import block_mask, view_mask
from visionzoo.data.ssl import SslData
from visionzoo.types import Preprocess


def ibot(grid: tuple[int, int], high: float, rng: random.Random) -> np.ndarray:
    """The reference's ``ImageFolderMask`` (bytedance/ibot, ``loader.py``), patch by patch."""
    height, width = grid
    mask = np.zeros(grid, dtype=bool)
    count = 0
    while count < high:
        most, delta = high - count, 0
        for _ in range(10):
            area = rng.uniform((min(grid) // 3) ** 2, most)
            aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
            h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if w < width and h < height:
                top, left = rng.randint(0, height - h), rng.randint(0, width - w)
                known = mask[top : top + h, left : left + w].sum()
                if 0 < h * w - known <= most:
                    for i in range(top, top + h):
                        for j in range(left, left + w):
                            if not mask[i, j]:
                                mask[i, j] = True
                                delta += 1
            if delta > 0:
                break
        if delta == 0:
            break
        count += delta
    return mask


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (4, 7), (2, 2)])
def test_masks_are_ibots(grid: tuple[int, int]) -> None:
    for key in range(100):
        most = 0.05 * (key % 10 + 1) * grid[0] * grid[1]
        ours = block_mask(grid, most, random.Random(key))
        assert np.array_equal(ours, ibot(grid, most, random.Random(key)))
        assert ours.sum() <= most


def test_as_many_views_and_patches_are_hidden_as_asked_for() -> None:
    masks = np.stack([view_mask((14, 14), (0.1, 0.5), 0.5, key) for key in range(1000)])
    assert np.array_equal(masks[7], view_mask((14, 14), (0.1, 0.5), 0.5, 7))
    shares = masks.mean((1, 2))
    assert (shares > 0).mean() == pytest.approx(0.5, abs=0.05)
    assert shares[shares > 0].mean() == pytest.approx(0.3, abs=0.03)
    assert shares.max() <= 0.5


def views(grid: tuple[int, int] | None, seed: int = 0) -> list[Any]:
    given = {"train_limit": 32, "batch_size": 16, "num_workers": 0, "seed": seed, "mask_probability": 1.0}
    data = SslData("digits", **given)
    data.preprocess = Preprocess(image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    data.mask_grid = grid
    return list(data.train_dataloader())


def test_they_follow_from_seed_epoch_and_image_and_change_nothing_else() -> None:
    plain, hiding, again, other = views(None), views((4, 4)), views((4, 4)), views((4, 4), seed=1)
    for a, b, c in zip(plain, hiding, again, strict=True):
        assert a.hidden is None
        assert torch.equal(a.views[0], b.views[0])
        assert torch.equal(b.hidden, c.hidden)
        assert b.hidden.tolist() == sorted(b.hidden.tolist())
        cells = torch.zeros(2 * 16 * 16, dtype=torch.bool).index_fill(0, b.hidden, True).view(2, 16, 16)
        assert cells.any(2).float().mean() > 0.9
        assert not torch.equal(cells[0], cells[1]), "each view has its own"
    assert not torch.equal(hiding[0].hidden, other[0].hidden)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mask_ratio": (0.0, 0.5)}, r"mask_ratio=\(0.0, 0.5\) must be \(smallest, largest\) with 0 <"),
        ({"mask_ratio": (0.5, 1.0)}, "largest < 1"),
        ({"mask_probability": 1.5}, "mask_probability=1.5"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SslData("digits", **options)
