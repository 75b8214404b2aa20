"""Losses of a classifier. Pure functions, computed in float32 whatever the precision of the logits.

Legend: B batch, K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Weighted cross entropy with label smoothing, for hard and for soft targets.

    The slow form, with ``t`` the (one-hot or soft) target, ``s = (1 - e) t + e / K`` and ``w`` the class weights::

        loss = sum_b sum_k w_k s_bk (-log p_bk)  /  sum_b sum_k w_k t_bk

    For hard targets this is ``torch.nn.functional.cross_entropy``; for soft ones torch divides by B instead, so that
    mixup with class weights would change the size of the loss. Without weights both are the same mean.

    Args:
        logits: (B, K), any floating type.
        target: (B,) int64 class indices, or (B, K) probabilities that sum to 1.
        label_smoothing: ``e`` in [0, 1): the share of probability spread over all classes (arXiv 1512.00567).
        class_weights: (K,) or None.

    Returns:
        A float32 scalar. 0 (with a gradient of 0) for an empty batch.
    """
    logits = logits.float()
    if len(logits) == 0:
        return logits.sum()
    if target.ndim == 1:
        return F.cross_entropy(logits, target, weight=class_weights, label_smoothing=label_smoothing)
    target = target.float()
    smooth = target * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    weights = torch.ones_like(logits[0]) if class_weights is None else class_weights.float()
    return -(smooth * weights * logits.log_softmax(1)).sum() / (target * weights).sum()


def binary_cross_entropy(
    logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean over samples and classes of the binary cross entropy, for multi-label targets.

    The slow form, with ``s = (1 - e) t + e / 2`` and ``p = sigmoid(logit)``::

        loss = mean_bk  w_k (-s_bk log p_bk - (1 - s_bk) log (1 - p_bk))

    Args:
        logits: (B, K), any floating type.
        target: (B, K) in [0, 1], or (B,) int64 class indices, of which each is one class against the others.
        label_smoothing: ``e`` in [0, 1).
        class_weights: (K,) or None.

    Returns:
        A float32 scalar. 0 (with a gradient of 0) for an empty batch.
    """
    logits = logits.float()
    if len(logits) == 0:
        return logits.sum()
    if target.ndim == 1:
        target = F.one_hot(target, logits.shape[1])
    smooth = target.float() * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, smooth, weight=class_weights)


def balanced_class_weights(counts: Tensor) -> Tensor:
    """Weights that give every class the same say: ``total / (K * count)``, as scikit-learn's ``balanced`` does.

    Args:
        counts: (K,) training samples per class.

    Returns:
        (K,) float32. A class without a sample gets 0: it can never be a target.
    """
    counts = counts.double()
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0).float()


#: ``loss(logits, target, *, label_smoothing, class_weights)`` -> float32 scalar
Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "binary_cross_entropy": binary_cross_entropy}


def register_loss(name: str, loss: Loss) -> None:
    """Add a loss that ``--model.loss`` of a classifier can name.

    Args:
        name: what it is called.
        loss: ``loss(logits, target, *, label_smoothing=0.0, class_weights=None)``, as :func:`cross_entropy` takes them
            and with a mean over images, so that a batch can be taken apart.

    Raises:
        ValueError: if the name is taken, or the function does not keep to that; it is tried on four images.
    """
    if name in LOSSES:
        raise ValueError(f"the loss {name!r} is registered already; choose another name")
    _try_loss(name, loss)
    LOSSES[name] = loss


def named_loss(name: str) -> Loss:
    """The loss that is called ``name``. Raises ValueError for an unknown one, with a near name."""
    if name not in LOSSES:
        near = difflib.get_close_matches(name, LOSSES, n=1) or LOSSES
        raise ValueError(f"loss={name!r} is unknown; known are {', '.join(near)}")
    return LOSSES[name]


def _try_loss(name: str, loss: Loss) -> None:
    logits = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
    target = torch.tensor([0, 2, 1, 1])
    options = {"label_smoothing": 0.0, "class_weights": None}
    try:
        with torch.enable_grad():
            whole, *parts = [loss(logits[a:b], target[a:b], **options) for a, b in ((0, 4), (0, 2), (2, 4))]
    except Exception as error:
        message = " ".join(str(error).split())
        raise ValueError(f"the loss {name!r} fails for logits (4, 3) and targets (4,): {message}") from error
    if not isinstance(whole, Tensor) or whole.shape != () or not whole.requires_grad:
        raise ValueError(f"the loss {name!r} must give a scalar with a gradient, not {whole!r}")
    if not torch.isclose(whole, torch.stack(parts).mean(), rtol=1e-4):
        raise ValueError(f"the loss {name!r} must be a mean over images, so that a batch can be taken apart")
