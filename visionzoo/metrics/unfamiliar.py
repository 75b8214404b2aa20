"""How well a classifier's scores tell images of its classes from other images.

Legend: N known images, M others, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def max_softmax(logits: Tensor) -> Tensor:
    """(N, K) -> (N,) the highest probability (arXiv 1610.02136): high for what is known."""
    return logits.double().softmax(1).amax(1)


def energy_score(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(N, K) -> (N,) negative free energy, ``T * logsumexp(logits / T)`` (arXiv 2010.03759): high for known ones."""
    return temperature * (logits.double() / temperature).logsumexp(1)


def separation(known: Tensor, other: Tensor, kept: float = 0.95) -> tuple[float, float]:
    """(AUROC, FPR95) of scores that should be high for known images.

    Args:
        known: (N,) scores of images of the classes.
        other: (M,) scores of images of none.
        kept: share of the known images that must be let through for the second number.

    Returns:
        the chance that a known image scores above another, ties by half; and the share of the others that is let
        through at the highest threshold that lets ``kept`` of the known ones through (at or above it).

    Raises:
        ValueError: for no images, or scores that are not finite.
    """
    if not len(known) or not len(other) or not (known.isfinite().all() and other.isfinite().all()):
        raise ValueError(f"{len(known)} known and {len(other)} other scores must be some, and finite")
    ordered = other.double().sort().values
    value = known.double()
    below, up_to = torch.searchsorted(ordered, value), torch.searchsorted(ordered, value, right=True)
    area = float((below + up_to).double().mean()) / (2 * len(other))
    need = -int(-kept * len(known) // 1)  # rounded up
    threshold = value.sort(descending=True).values[need - 1]
    return area, float((other.double() >= threshold).double().mean())
