"""What features of images without labels look like: whether they say something, or have collapsed.

Legend: N images, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

#: Images that are compared with all others at a time.
ROWS = 1024


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


def nearest_others(features: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Cosines and places (N, k) of the nearest others of each of (N, D) features, k at most N - 1, nearest first."""
    unit = F.normalize(features.float(), dim=1)
    found = []
    for start in range(0, len(unit), ROWS):
        rows = unit[start : start + ROWS] @ unit.T
        rows[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = float("-inf")
        found.append(rows.topk(min(neighbours, len(unit) - 1), dim=1))
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def nearest_accuracy(features: Tensor, labels: Tensor, neighbours: int = 20) -> float:
    """Share of images whose nearest others, weighted by exp(cosine / 0.07), have their label (DINO's k-NN, arXiv
    2104.14294, appendix F), each image left out of its own neighbours.

    Args:
        features: (N, D), N at least 2.
        labels: (N,) int64.
        neighbours: at most N - 1 are taken.
    """
    near, places = nearest_others(features, neighbours)
    votes = torch.zeros(len(features), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[places], (near / 0.07).exp())
    return float((votes.argmax(1) == labels).float().mean())


def effective_negatives(first: Tensor, second: Tensor, temperature: float) -> float:
    """How many other images count in a contrastive loss: exp of the mean entropy of their softmax, in [1, N - 1].

    Args:
        first, second: (N, D), row i of both of one image, N at least 2; brought to length one.
        temperature: of the loss.
    """
    logits = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T / temperature
    logits.fill_diagonal_(float("-inf"))
    said = logits.log_softmax(1)
    # what is infinitely unlikely adds nothing
    return float((-(said.exp() * said.clamp(min=-1e4)).sum(1)).mean().exp())


def entropy_share(probabilities: Tensor) -> float:
    """Mean entropy as a share of its largest value, log K, in [0, 1].

    Args:
        probabilities: (N, K), K at least 2.
    """
    logs = probabilities.double().clamp(min=1e-30).log()
    return abs(float((probabilities.double() * logs).sum(1).mean())) / math.log(probabilities.shape[1])


def spread(features: Tensor) -> float:
    """Mean squared distance to the mean of (N, D) features of length one, in [0, 1]; 0 where all are the same."""
    return float(1 - F.normalize(features.float(), dim=1).mean(0).square().sum())
