"""Captions that do not fit their image, by a CLIP.

Legend: N images, T captions, D width of the embeddings.
"""

from __future__ import annotations

import numpy as np

#: Captions of other images that each one is held against, at most.
_OTHERS = 2000
#: A caption fits badly where this share of the others' captions fits its image better.
BADLY = 0.2
#: A model for which the usual caption is not among the best tenth does not know such images, or such texts.
_KNOWS = 0.1


def caption_fit(images: np.ndarray, texts: np.ndarray, of: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(T,) share of other images' captions that fit the image better than its own caption: 0 for a good one.

    Args:
        images: (N, D), of length 1.
        texts: (T, D), of length 1.
        of: (T,) row of the image of each caption.
        seed: of which captions are compared with.
    """
    some = np.random.default_rng(seed).permutation(len(texts))[:_OTHERS]
    own = np.einsum("td,td->t", images[of], texts)
    share = np.zeros(len(texts))
    for start in range(0, len(texts), 4096):
        rows = slice(start, start + 4096)
        others = images[of[rows]] @ texts[some].T
        strange = of[some][None] != of[rows][:, None]
        better = (others > own[rows, None]) & strange
        share[rows] = better.sum(1) / np.maximum(strange.sum(1), 1)
    return share


def knows(share: np.ndarray) -> bool:
    """Whether the model of :func:`caption_fit` tells such captions apart, by the (T,) shares."""
    return bool(len(share) >= 20 and np.median(share) < _KNOWS)
