"""Numbers of a finished evaluation: tensors in, tensors out. Training accumulates with torchmetrics classes instead.

What torchmetrics has is called, not rewritten; what is here beyond that are the checks that make a wrong input loud,
and the per-class table, which is read off a confusion matrix so that streaming and finished evaluations share it.

Legend: N images, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ClassScores(NamedTuple):
    """Scores per class, each (K,) float64; NaN where the score is undefined (no such prediction, or no such label)."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor  #: (K,) int64, images whose label is the class


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(N,) predicted and true classes -> (K, K) int64 counts; rows are true classes, columns predicted ones.

    Raises:
        ValueError: for a class outside [0, num_classes).
    """
    for name, values in (("predicted", predicted), ("labels", labels)):
        check_range(name, values, num_classes)
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2")
    from torchmetrics.functional import classification as tm  # takes as long to import as torch

    return tm.multiclass_confusion_matrix(predicted, labels, num_classes)


def class_scores(matrix: Tensor) -> ClassScores:
    """Precision, recall and F1 of each class from a confusion matrix.

    Args:
        matrix: (K, K) counts, rows true and columns predicted; or (K, 2, 2) for multi-label data, one such matrix for
            each class, as torchmetrics' ``multilabel_confusion_matrix`` gives it.

    Raises:
        ValueError: for any other shape.
    """
    if matrix.ndim == 3 and matrix.shape[1:] == (2, 2):
        hits, predicted, support = matrix[:, 1, 1], matrix[:, :, 1].sum(1), matrix[:, 1].sum(1)
    elif matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]:
        hits, predicted, support = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    else:
        raise ValueError(f"a confusion matrix is (K, K) or (K, 2, 2), not {tuple(matrix.shape)}")
    hits = hits.double()
    # 0 / 0 is NaN on purpose: a class that was never predicted has no precision, which is not a precision of 0
    return ClassScores(hits / predicted, hits / support, 2 * hits / (predicted + support), support.long())


def check_range(name: str, values: Tensor, num_classes: int) -> None:
    """Raises ValueError for classes outside [0, num_classes)."""
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
        raise ValueError(
            f"{name} run from {int(values.min())} to {int(values.max())}; they must be in 0..{num_classes - 1}"
        )
