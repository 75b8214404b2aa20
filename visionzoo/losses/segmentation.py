"""What a promptable segmentation model is trained with (arXiv 2304.02643, section 3 and appendix A, "Losses").

Everything is computed in float32, whatever the precision of the input.

Legend: N prompts, M masks per prompt, (h, w) pixels of a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

#: Weights of the focal, dice and IoU terms in the paper.
FOCAL, DICE, IOU = 20.0, 1.0, 1.0


class PromptLoss(NamedTuple):
    """The loss of a batch of prompts; each term a float32 scalar, the mean over prompts, before its weight."""

    total: Tensor  #: the weighted sum, to be minimised
    focal: Tensor
    dice: Tensor
    iou: Tensor
    best: Tensor  #: (N,) int64, the mask of each prompt that was trained


def focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0, valid: Tensor | None = None
) -> Tensor:
    """Sigmoid focal loss of each mask, the mean over its pixels (arXiv 1708.02002, equation 5).

    For a pixel with probability p: ``-alpha (1 - p)**gamma log p`` inside the object,
    ``-(1 - alpha) p**gamma log (1 - p)`` outside.

    Args:
        logits: (N, M, h, w).
        targets: (N, M, h, w) or (N, 1, h, w), in 0..1.
        alpha: weight of pixels inside.
        gamma: how little sure pixels count.
        valid: (N, 1, h, w) bool, False for padding, which does not count; None for none.

    Returns:
        (N, M) float32.
    """
    x, t = logits.float(), targets.float()
    t, weight = t.expand_as(x), _weight(x, valid)
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p = x.sigmoid()
    missed = p + t - 2 * p * t  # 1 - p inside, p outside
    values = (alpha * t + (1 - alpha) * (1 - t)) * missed**gamma * entropy
    return _mean(values, weight)


def dice_loss(logits: Tensor, targets: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Dice loss of each mask, (..., H, W) -> (...,): ``1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)`` (arXiv
    1606.04797).

    Args and the shape of the result are those of :func:`focal_loss`.
    """
    p, t = logits.float().sigmoid(), targets.float()
    weight = _weight(p, valid)
    p, t = p * weight, (t * weight).expand_as(p)
    return 1 - (2 * (p * t).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + t.sum((-2, -1)) + 1)


def mask_iou(masks: Tensor, targets: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Intersection over union: (..., h, w) and (..., h, w), bool or 0 and 1 -> (...) float32. Two empty masks have 1.

    Args:
        valid: (..., h, w) bool, False for padding, which does not count; None for none.
    """
    masks, targets = masks.bool(), targets.bool()
    if valid is not None:
        masks, targets = masks & valid, targets & valid
    union = (masks | targets).sum((-2, -1))
    return torch.where(union > 0, (masks & targets).sum((-2, -1)) / union.clamp(min=1), 1.0)


def prompt_loss(
    logits: Tensor,
    scores: Tensor,
    targets: Tensor,
    *,
    valid: Tensor | None = None,
    weights: tuple[float, float, float] = (FOCAL, DICE, IOU),
    all_scores: bool = True,
) -> PromptLoss:
    """Focal, dice and IoU loss of the best mask of each prompt.

    Of several masks only the one with the lowest weighted focal and dice loss is trained, so that each may specialise.
    In words: for each prompt, compute ``20 * focal + dice`` of each mask; keep the least; add the squared error of the
    predicted IoU; average over prompts.

    Args:
        logits: (N, M, h, w).
        scores: (N, M), the predicted IoU.
        targets: (N, 1, h, w) or (N, h, w), in 0..1.
        valid: (N, 1, h, w) or (N, h, w) bool, False for padding.
        weights: of the three terms.
        all_scores: the predicted IoU of all masks is trained (their mean): ranking needs the bad ones too. False
            trains that of the best mask alone.

    Raises:
        ValueError: for shapes that do not fit.
    """
    targets, valid = _as_4d(targets), None if valid is None else _as_4d(valid)
    n, m = logits.shape[:2]
    if targets.shape != (n, 1, *logits.shape[2:]) or scores.shape != (n, m):
        raise ValueError(
            f"masks {tuple(logits.shape)}, scores {tuple(scores.shape)} and targets {tuple(targets.shape)} do not fit: "
            "they must be (N, M, h, w), (N, M) and (N, 1, h, w)"
        )
    if n == 0:  # zero, with a gradient of zero for every parameter behind it
        nothing = logits.float().sum() + scores.float().sum()
        return PromptLoss(nothing, nothing, nothing, nothing, scores.new_zeros(0, dtype=torch.int64))
    focal, dice = focal_loss(logits, targets, valid=valid), dice_loss(logits, targets, valid=valid)
    best = (weights[0] * focal + weights[1] * dice).detach().argmin(dim=1)
    # what is thin fills no cell by half: it is then what fills more than half of its fullest cell
    least = (targets.amax((-2, -1), keepdim=True) / 2).clamp(max=0.5)
    error = (scores.float() - mask_iou(logits > 0, targets > least, valid=valid)) ** 2
    chosen = best[:, None]
    terms = [x.gather(1, chosen).mean() for x in (focal, dice)]
    terms.append(error.mean() if all_scores else error.gather(1, chosen).mean())
    total = weights[0] * terms[0] + weights[1] * terms[1] + weights[2] * terms[2]
    return PromptLoss(total, terms[0], terms[1], terms[2], best)


def _as_4d(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.ndim == 3 else x


def _weight(like: Tensor, valid: Tensor | None) -> Tensor:
    return like.new_ones(()) if valid is None else valid.to(like.dtype)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    count = weight.expand_as(values).sum((-2, -1)).clamp(min=1)
    return (values * weight).sum((-2, -1)) / count
