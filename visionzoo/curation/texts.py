"""Captions that do not fit their image, by a CLIP.

Legend: N images, T captions, D width of the embeddings.
"""

from __future__ import annotations

import numpy as np

#: Captions of other images that each one is held against, at most.
_OTHERS = 2000
#: Captions that are compared at a time.
_BLOCK = 1024
#: A caption does not fit where this share of the others' captions fits its image better; it fits weakly from the lesser
#: share on, which a model that does not know the image well gives good captions too.
BADLY, WEAKLY = 0.5, 0.2
#: A model for which the usual caption is not among the best tenth does not know such images, or such texts.
_KNOWS = 0.1


def caption_fit(
    images: np.ndarray, texts: np.ndarray, of: np.ndarray, scale: float = 100.0, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """How badly captions fit their images.

    Args:
        images: (N, D), of length 1.
        texts: (T, D), of length 1.
        of: (T,) row of the image of each caption.
        scale: by which the model multiplies cosines before a softmax.
        seed: of which captions and images are compared with.

    Returns:
        (T,) share of other images' captions that fit the image better than its own, 0 for a good one; and (T,) the
        contrastive loss of each pair, over captions and over images, which sorts doubtful ones better.
    """
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(texts))[:_OTHERS]
    few = rng.permutation(len(images))[:_OTHERS]
    own = np.einsum("td,td->t", images[of], texts)
    share, loss = np.zeros(len(texts)), np.zeros(len(texts))
    for start in range(0, len(texts), _BLOCK):
        rows = slice(start, start + _BLOCK)
        captions, pictures = images[of[rows]] @ texts[some].T, texts[rows] @ images[few].T
        strange = of[some][None] != of[rows][:, None]
        share[rows] = ((captions > own[rows, None]) & strange).sum(1) / np.maximum(strange.sum(1), 1)
        for found, other in ((captions, strange), (pictures, few[None] != of[rows][:, None])):
            better = np.exp(scale * (found - own[rows, None]).astype(np.float64)) * other
            loss[rows] += np.log1p(better.sum(1))
    return share, loss


def knows(share: np.ndarray) -> bool:
    """Whether the model of :func:`caption_fit` tells such captions apart, by the (T,) shares."""
    return bool(len(share) >= 20 and np.median(share) < _KNOWS)
