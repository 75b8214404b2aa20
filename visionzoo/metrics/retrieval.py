"""How often the right text is found for an image, and the right image for a text.

Legend: N images, M captions (several of one image), D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Similarities held at once: 64 MiB in float32.
_CHUNK = 2**24


def retrieval_recall(
    image_features: Tensor,
    text_features: Tensor,
    owner: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    group: Tensor | None = None,
) -> dict[str, float]:
    """Recall at k both ways, as the captioning benchmarks count it (Flickr30k, COCO).

    Image to text: the share of images for which at least one of their captions is among the k most similar captions.
    Text to image: the share of captions for which an image of theirs is among the k most similar images. What scores
    the same as the right answer counts as ranked before it, so that constant features find nothing.

    With ``group``, captions of one group are the same text, which is ranked once: an image owns every caption of the
    groups that its captions belong to, and every image that owns a caption's group is right for that caption.

    Args:
        image_features: (N, D), of length one.
        text_features: (M, D), of length one.
        owner: (M,) int64, the image that each caption belongs to; every image needs a caption.
        ks: each at least 1.
        group: (M,) int64, any numbers, equal for captions of the same text; None where each stands for itself.

    Returns:
        ``image_to_text_r1``, ``text_to_image_r1`` and so on, in [0, 1].

    Raises:
        ValueError: for shapes that do not belong together, features that are not finite, an owner out of range, an
            image without captions, or a k below 1.
    """
    if min(ks, default=0) < 1:
        raise ValueError(f"ks={list(ks)} must be whole numbers from 1 on")
    image_rank, text_rank = retrieval_ranks(image_features, text_features, owner, group)
    ranks = {"image_to_text": image_rank, "text_to_image": text_rank}
    return {f"{way}_r{k}": float((rank < k).float().mean()) for way, rank in ranks.items() for k in ks}


def retrieval_ranks(
    image_features: Tensor, text_features: Tensor, owner: Tensor, group: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """How many wrong answers stand before the best right one: (N,) of the images, (M,) of the captions.

    Takes (N, D), (M, D), (M,) and (M,), and raises, as :func:`retrieval_recall` does.
    """
    n, m = len(image_features), len(text_features)
    _check(image_features, text_features, owner, group)
    image, text = image_features.float(), text_features.float()
    owner = owner.to(image.device)
    if group is None:
        group = torch.arange(m, device=image.device)
    else:
        group = group.to(image.device).unique(return_inverse=True)[1]
    count = int(group.max()) + 1
    image_rank = torch.empty(n, dtype=torch.int64, device=image.device)
    text_rank = torch.empty(m, dtype=torch.int64, device=image.device)
    for rows in torch.arange(n, device=image.device).split(max(1, _CHUNK // m)):
        scores = image[rows] @ text.T
        best = scores.new_full((len(rows), count), -torch.inf)
        best.scatter_reduce_(1, group.expand_as(scores), scores, "amax")
        image_rank[rows] = _rank(best, _table(rows, owner, group, count))
    for rows in torch.arange(m, device=image.device).split(max(1, _CHUNK // n)):
        found, place = group[rows].unique(return_inverse=True)
        text_rank[rows] = _rank(text[rows] @ image.T, _table(found, group, owner, n)[place])
    return image_rank, text_rank


def _rank(scores: Tensor, right: Tensor) -> Tensor:
    """How many wrong answers stand before the best right one, in each row of (b, K) scores."""
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~right).sum(dim=1)


def _table(asked: Tensor, keys: Tensor, values: Tensor, count: int) -> Tensor:
    """(b, count) bool: row r has every value in 0..count-1 that stands beside the key ``asked[r]``; b sorted keys."""
    place = torch.searchsorted(asked, keys).clamp(max=len(asked) - 1)
    here = asked[place] == keys
    table = torch.zeros(len(asked), count, dtype=torch.bool, device=keys.device)
    table[place[here], values[here]] = True
    return table


def _check(image: Tensor, text: Tensor, owner: Tensor, group: Tensor | None) -> None:
    if image.ndim != 2 or text.ndim != 2 or image.shape[1:] != text.shape[1:] or owner.shape != text.shape[:1]:
        raise ValueError(
            f"images {tuple(image.shape)}, texts {tuple(text.shape)} and owner {tuple(owner.shape)} must be (N, D), "
            "(M, D) and (M,)"
        )
    if group is not None and group.shape != owner.shape:
        raise ValueError(f"group {tuple(group.shape)} must have one number for each of the {len(owner)} captions")
    if not (torch.isfinite(image).all() and torch.isfinite(text).all()):
        raise ValueError("features hold NaN or infinity; ranks would mean nothing")
    images = len(image)
    if len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < images:
        raise ValueError(f"owner runs from {int(owner.min())} to {int(owner.max())}; there are images 0..{images - 1}")
    alone = images - len(owner.unique())
    if alone or not images:
        raise ValueError(f"{alone} of {images} images have no caption; leave them out, or give them one")
