"""Which patches of a view are hidden from the student, drawn from seeds. Workers import this.

Legend: (h, w) grid of patches.
"""

from __future__ import annotations

import math
import random

import numpy as np

#: Rectangles that are tried before a mask is left as it is, and their height / width at most; BEiT's.
TRIES, ASPECT = 10, 1 / 0.3


def view_mask(grid: tuple[int, int], ratio: tuple[float, float], probability: float, key: int) -> np.ndarray:
    """(h, w) bool, true where a patch is hidden: with ``probability`` a share drawn from ``ratio``, else none (iBOT,
    arXiv 2111.07832, section 3.1 and appendix). All randomness comes from ``key``.

    Args:
        grid: (h, w).
        ratio: smallest and largest share.
        probability: of a view that hides anything.
        key: see :func:`visionzoo.data.keys.sample_key`.
    """
    rng = random.Random(key)
    if rng.random() >= probability:
        return np.zeros(grid, dtype=bool)
    return block_mask(grid, rng.uniform(*ratio) * grid[0] * grid[1], rng)


def block_mask(grid: tuple[int, int], most: float, rng: random.Random) -> np.ndarray:
    """(h, w) bool, true in rectangles that overlap, ``most`` patches at the most (BEiT, arXiv 2106.08254, algorithm 1,
    with the bounds of iBOT's reference code)."""
    height, width = grid
    mask, hidden = np.zeros(grid, dtype=bool), 0
    while hidden < most:
        for _ in range(TRIES):
            area = rng.uniform((min(grid) // 3) ** 2, most - hidden)
            aspect = math.exp(rng.uniform(-math.log(ASPECT), math.log(ASPECT)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= height or w >= width:
                continue
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            block = mask[top : top + h, left : left + w]
            if 0 < (new := block.size - int(block.sum())) <= most - hidden:
                block[:] = True
                hidden += new
                break
        else:  # what is left is too small, or nothing fits
            break
    return mask
