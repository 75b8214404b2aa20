"""What features of images without labels look like: whether they say something, or have collapsed.

Legend: N images, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def effective_rank(features: Tensor) -> float:
    """RankMe (arXiv 2210.02885, equation 1): exp of the entropy of the singular values' shares, in [1, min(N, D)].

    Args:
        features: (N, D).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=1e-12) + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of two views of an image (arXiv 2005.10242, section 4.1), in [0, 4]; both are brought to
    length one.

    Args:
        first, second: (N, D), row i of both of one image.
    """
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).pow(2).sum(1).mean())


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 d^2) over pairs (arXiv 2005.10242, section 4.1), at most 0; 0 is a collapse.

    Args:
        features: (N, D), N at least 2; brought to length one.
    """
    distances = torch.pdist(F.normalize(features.float(), dim=1)).pow(2)
    return float(distances.mul(-2).exp().mean().log())


def dead_share(features: Tensor) -> float:
    """Share of the dimensions that hardly vary: a standard deviation below a hundredth of the largest.

    Args:
        features: (N, D).
    """
    spread = features.float().std(0)
    return float((spread < 0.01 * spread.max().clamp(min=1e-12)).float().mean())


def nearest_accuracy(features: Tensor, labels: Tensor, neighbours: int = 20) -> float:
    """Share of images whose nearest others, weighted by exp(cosine / 0.07), have their label (DINO's k-NN, arXiv
    2104.14294, appendix F), each image left out of its own neighbours.

    Args:
        features: (N, D).
        labels: (N,) int64.
        neighbours: at most N - 1 are taken.
    """
    unit = F.normalize(features.float(), dim=1)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(float("-inf"))
    near, places = cosines.topk(min(neighbours, len(unit) - 1), dim=1)
    votes = torch.zeros(len(unit), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[places], (near / 0.07).exp())
    return float((votes.argmax(1) == labels).float().mean())
