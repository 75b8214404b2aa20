"""Losses of pretraining on views of images without labels, in float32 whatever the precision of the features.

Legend: B images of this process, W processes, N = W * B images in all, D width, K prototypes, M hidden patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.losses.contrastive import Gather


def nt_xent(first: Tensor, second: Tensor, temperature: float, *, gather: Gather | None = None) -> Tensor:
    """SimCLR's loss (arXiv 2002.05709, equation 1): each view picks the other view of its image among all other views.

    In slow form, with all 2N views ``z`` of length one::

        for i in range(2 * N):
            others = [z[i] @ z[k] / temperature for k in range(2 * N) if k != i]
            loss += (logsumexp(others) - z[i] @ z[partner(i)] / temperature) / (2 * N)

    Args:
        first: (B, D), features of one view of each image; they are brought to length one here.
        second: (B, D), of the other.
        temperature: above 0.
        gather: with several processes, what brings their features together, with gradients
            (:func:`visionzoo.losses.gather.gather_features`). The loss is then the mean over this process's own views,
            so that the mean over processes is the loss of all.

    Returns:
        float32 scalar (float64 for float64 features).

    Raises:
        ValueError: for shapes that differ, fewer than two images in all, or a temperature that is not above 0.
    """
    check_temperature("temperature", temperature)
    first, second = _views(first, second)
    own = torch.cat((first, second))
    count = len(first)
    start, everyone = 0, (first, second)
    if gather is not None:
        (all_first, start), (all_second, _) = gather(first), gather(second)
        everyone = all_first, all_second
    total = len(everyone[0])
    if total < 2:
        raise ValueError("one image has no other to be told from; take a batch of at least 2")
    place = torch.arange(start, start + count, device=own.device)
    with torch.autocast(own.device.type, enabled=False):
        logits = own @ torch.cat(everyone).T / temperature  # (2B, 2N)
        itself = torch.cat((place, place + total))
        logits = logits.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(logits, torch.cat((place + total, place)))


def momentum_contrast(
    queries: Tensor, keys: Tensor, temperature: float, *, queue: Tensor | None = None, gather: Gather | None = None
) -> Tensor:
    """MoCo's loss: each query picks the key of its image among those of all images.

    Without a queue it is MoCo v3's, one of its two halves (arXiv 2104.02057, algorithm 1): the keys of all images are
    told apart, and the result is multiplied by twice the temperature. With a queue it is that of v1 and v2
    (1911.05722, algorithm 1): the own key among those that the queue remembers.

    Args:
        queries: (B, D), with gradients; brought to length one here, as are the keys.
        keys: (B, D), of the momentum encoder; no gradient goes there.
        temperature: above 0.
        queue: (K, D) of length one, keys of earlier steps.
        gather: with several processes and no queue, what brings their keys together.

    Returns:
        float32 scalar (float64 for float64 features).

    Raises:
        ValueError: for shapes that differ, or a temperature that is not above 0.
    """
    check_temperature("temperature", temperature)
    queries, keys = _views(queries, keys.detach())
    with torch.autocast(queries.device.type, enabled=False):
        if queue is not None:
            own = (queries * keys).sum(1, keepdim=True)
            logits = torch.cat((own, queries @ queue.to(own.dtype).T), 1) / temperature
            return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))
        everyone, start = (keys, 0) if gather is None else gather(keys)
        target = torch.arange(start, start + len(queries), device=queries.device)
        return F.cross_entropy(queries @ everyone.T / temperature, target) * (2 * temperature)


def self_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """DINO's loss (arXiv 2104.14294, algorithm 1): the student says of every view what the teacher says of another.

    In slow form::

        for t, target in enumerate(teacher):
            for s, view in enumerate(student):
                if s != t:
                    p = softmax((target - centre) / teacher_temperature)
                    loss -= (p * log_softmax(view / student_temperature)).sum(1).mean() / pairs

    Args:
        student: (B, K) for each view; those that the teacher sees come first.
        teacher: (B, K) for each large view, in the same order; no gradient goes there.
        centre: (K,), a running mean of what the teacher says.
        student_temperature, teacher_temperature: above 0.

    Returns:
        float32 scalar (float64 for float64 outputs).

    Raises:
        ValueError: for fewer than two views of the student, none of the teacher, or a temperature that is not above 0.
    """
    check_temperature("student_temperature", student_temperature)
    check_temperature("teacher_temperature", teacher_temperature)
    if not teacher or len(student) < 2 or len(student) < len(teacher):
        raise ValueError(
            f"{len(student)} views of the student and {len(teacher)} of the teacher: the teacher sees at least one, "
            "the student these and at least one more, or two in all"
        )
    with torch.autocast(centre.device.type, enabled=False):
        targets = torch.stack([sharpened(t, centre, teacher_temperature) for t in teacher])  # (T, B, K)
        said = torch.stack([F.log_softmax(_full(s) / student_temperature, dim=1) for s in student])  # (S, B, K)
        crossed = -torch.einsum("tbk,sbk->ts", targets, said) / targets.shape[1]
        other = 1 - torch.eye(len(teacher), len(student), device=crossed.device, dtype=crossed.dtype)
        return (crossed * other).sum() / other.sum()


def masked_patch_distillation(
    student: Tensor,
    teacher: Tensor,
    image: Tensor,
    images: int,
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """iBOT's loss of patches (arXiv 2111.07832, equation 2): what the teacher says of a patch that the student does not
    see. The mean over the hidden patches of an image, then over all images, also those that hide none.

    In slow form::

        for b in range(images):
            hidden = [m for m in range(M) if image[m] == b]
            for m in hidden:
                p = softmax((teacher[m] - centre) / teacher_temperature)
                loss -= (p * log_softmax(student[m] / student_temperature)).sum() / len(hidden) / images

    Args:
        student: (M, K), of the hidden patches of the masked images; M may be 0.
        teacher: (M, K), of the same patches of the whole images; no gradient goes there.
        image: (M,) int64 in 0..images - 1, the image that each patch belongs to.
        images: how many images there are.
        centre: (K,), a running mean of what the teacher says of patches.
        student_temperature, teacher_temperature: above 0.

    Returns:
        float32 scalar (float64 for float64 outputs).

    Raises:
        ValueError: for shapes that do not fit, or a temperature that is not above 0.
    """
    check_temperature("student_temperature", student_temperature)
    check_temperature("teacher_temperature", teacher_temperature)
    if student.shape != teacher.shape or student.ndim != 2 or image.shape != student.shape[:1]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (M, K), the images of the "
            f"patches {tuple(image.shape)} (M,)"
        )
    with torch.autocast(student.device.type, enabled=False):
        target = sharpened(teacher, centre, teacher_temperature)
        loss = -(target * F.log_softmax(_full(student) / student_temperature, dim=-1)).sum(-1)
        count = loss.new_zeros(images).index_add_(0, image, torch.ones_like(loss))
        return (loss / count[image]).sum() / images


def sharpened(outputs: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """(..., K) outputs of a teacher -> (..., K) probabilities, centred and sharpened, without a gradient."""
    outputs = _full(outputs.detach())
    return F.softmax((outputs - centre.to(outputs.dtype)) / temperature, dim=-1)


def check_temperature(name: str, value: float) -> None:
    """Raises ValueError for a temperature that is not above 0."""
    if not value > 0:
        raise ValueError(f"{name}={value} must be above 0; the papers use 0.04 to 0.5")


def _full(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _views(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two (B, D), of length one."""
    if first.ndim != 2 or first.shape != second.shape or len(first) == 0:
        raise ValueError(
            f"the views {tuple(first.shape)} and {tuple(second.shape)} must both be (B, D), with at least one image"
        )
    return F.normalize(_full(first), dim=1), F.normalize(_full(second), dim=1)
