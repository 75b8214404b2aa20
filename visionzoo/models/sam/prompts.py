"""What a user asks for: clicks, boxes, masks and texts of many objects in one batch.

Legend: N prompts (objects asked for), P points, C width, (h, w) embedding grid, T width of a text embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

#: Labels of points. The first is padding that nothing ever sees; the second is a token that Meta's model was trained
#: to see where there is no box. Corners are how a box is told.
IGNORED, NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -2, -1, 0, 1, 2, 3


def corner_labels(boxes: Tensor) -> Tensor:
    """What the two corners of boxes (N, 4) are called: (N, 2) int64."""
    return torch.arange(TOP_LEFT, BOTTOM_RIGHT + 1, device=boxes.device).expand(len(boxes), 2)


def may_look(x: Tensor) -> bool:
    """Whether to look at the values of ``x``, of any shape: not in training on a device, where the host would wait."""
    return x.device.type == "cpu" or not torch.is_grad_enabled()


class Prompts(NamedTuple):
    """A batch of prompts, one for each object. Made by :meth:`of`, put together by :func:`join`.

    Objects may have any number of points, and each its own kinds of prompt: what one lacks is padded and ignored, so
    that its answer is the one it gets alone.
    """

    points: Tensor  #: (N, P, 2) float32, (x, y) in pixels of the model's input; P may be 0
    labels: Tensor  #: (N, P) int64, see :data:`IGNORED` and what follows it
    masks: Tensor | None = None  #: (N, 1, 4 h, 4 w) logits of an earlier answer; rows without one hold anything finite
    has_mask: Tensor | None = None  #: (N,) bool; None where all have the mask in ``masks``
    text: Tensor | None = None  #: (N, T) text embeddings
    has_text: Tensor | None = None  #: (N,) bool; None where all have the text in ``text``
    image_index: Tensor | None = None  #: (N,) int64, which image of the batch each is about; None for the first

    @classmethod
    def of(
        cls,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        text: Tensor | None = None,
        *,
        image_index: Tensor | int | None = None,
    ) -> Prompts:
        """Prompts of one kind or mix for N objects.

        Args:
            points: (N, P, 2), (x, y) in pixels of the model's input.
            labels: (N, P), 1 for the object, 0 for what is not, -1 and -2 for padding (Meta's, and unseen).
            boxes: (N, 4), x0, y0, x1, y1.
            masks: (N, 1, 4 h, 4 w), low-resolution logits of an earlier answer.
            text: (N, T).
            image_index: which image of a batch they are about: (N,), or one number for all.

        Nothing at all is one object that is not described: the decoder answers from the image alone, as Meta's does.

        Raises:
            ValueError: for shapes that do not fit together, or unknown labels.
        """
        parts = [x for x in (points, boxes, masks, text) if x is not None]
        count, like = (len(parts[0]), parts[0]) if parts else (1, torch.empty(0))
        if any(len(x) != count for x in parts):
            raise ValueError(f"prompts for {[len(x) for x in parts]} objects cannot be one batch; pad them with join()")
        xy, kind = like.new_zeros(count, 0, 2, dtype=torch.float32), like.new_zeros(count, 0, dtype=torch.int64)
        if points is not None:
            xy, kind = _points(points, labels)
            if boxes is None:
                xy, kind = F.pad(xy, (0, 0, 0, 1)), F.pad(kind, (0, 1), value=NOT_A_POINT)
        elif labels is not None:
            raise ValueError("labels belong to points, and there are none")
        if boxes is not None:
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise ValueError(f"boxes of shape {tuple(boxes.shape)} must be (N, 4): x0, y0, x1, y1")
            xy, kind = torch.cat((xy, boxes.reshape(-1, 2, 2).float()), 1), torch.cat((kind, corner_labels(boxes)), 1)
        if masks is not None and (masks.ndim != 4 or masks.shape[1] != 1):
            raise ValueError(f"mask prompts of shape {tuple(masks.shape)} must be (N, 1, H, W)")
        if text is not None and text.ndim != 2:
            raise ValueError(f"text prompts of shape {tuple(text.shape)} must be (N, T)")
        if isinstance(image_index, int):
            image_index = torch.full((count,), image_index, dtype=torch.int64, device=like.device)
        return cls(xy, kind, masks, None, text, None, image_index)

    @property
    def number(self) -> int:
        """N."""
        return self.points.shape[0]

    def to(self, device: torch.device | str) -> Prompts:
        """The same on another device."""
        return Prompts(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]

    def select(self, index: slice | Tensor) -> Prompts:
        """Some of the objects: a slice, or (n,) positions."""
        return Prompts(*(None if x is None else x[index] for x in self))  # type: ignore[arg-type]


def join(parts: Sequence[Prompts]) -> Prompts:
    """Several batches of prompts as one: points padded to the longest, masks and texts flagged where they are missing.

    Raises:
        ValueError: for none, or for masks or texts of different sizes.
    """
    if not parts:
        raise ValueError("there are no prompts to join")
    longest = max(p.points.shape[1] for p in parts)
    points = [F.pad(p.points, (0, 0, 0, longest - p.points.shape[1])) for p in parts]
    labels = [F.pad(p.labels, (0, longest - p.labels.shape[1]), value=IGNORED) for p in parts]
    masks, has_mask = _optional([(p.masks, p.has_mask) for p in parts], [p.number for p in parts], "masks")
    text, has_text = _optional([(p.text, p.has_text) for p in parts], [p.number for p in parts], "texts")
    index = None
    if any(p.image_index is not None for p in parts):
        zero = [p.labels.new_zeros(p.number) for p in parts]
        index = torch.cat([z if p.image_index is None else p.image_index for p, z in zip(parts, zero, strict=True)])
    return Prompts(torch.cat(points), torch.cat(labels), masks, has_mask, text, has_text, index)


def _optional(
    parts: list[tuple[Tensor | None, Tensor | None]], counts: list[int], what: str
) -> tuple[Tensor | None, Tensor | None]:
    """Concatenate what only some have, and say who."""
    given = [x for x, _ in parts if x is not None]
    if not given:
        return None, None
    if any(x.shape[1:] != given[0].shape[1:] for x in given):
        raise ValueError(f"{what} of sizes {sorted({tuple(x.shape[1:]) for x in given})} cannot be one batch")
    values, flags = [], []
    for (x, has), n in zip(parts, counts, strict=True):
        values.append(given[0].new_zeros(n, *given[0].shape[1:]) if x is None else x)
        flags.append(torch.full((n,), x is not None, device=given[0].device) if has is None else has)
    return torch.cat(values), torch.cat(flags)


def _points(points: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    if labels is None:
        raise ValueError("points need labels: 1 for the object, 0 for what is not part of it")
    if points.ndim != 3 or points.shape[2] != 2 or labels.shape != points.shape[:2]:
        raise ValueError(
            f"points of shape {tuple(points.shape)} and labels of shape {tuple(labels.shape)} must be (N, P, 2) and "
            "(N, P)"
        )
    kind = labels.long()
    if kind.numel() and (kind.min() < IGNORED or kind.max() > FOREGROUND or (kind != labels).any()):
        raise ValueError(
            f"labels {sorted(set(labels.flatten().tolist()))[:8]} must be 1 (the object) or 0 (not the object); "
            "-1 and -2 are padding"
        )
    return points.float(), kind
