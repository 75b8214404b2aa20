"""Features of other processes, with gradients; and batches larger than memory.

Legend: B pairs of this process, W processes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def gather_features(features: Tensor) -> tuple[Tensor, int]:
    """The features of all processes, in the order of their ranks: (B, D) -> (W * B, D), and where one's own begin.

    The gradient of a process's features is the sum of what all processes send back. Every process must bring as many
    features: a loader for training drops its last, smaller batch. Without processes, the features themselves.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features, 0
    return _AllGather.apply(features), dist.get_rank() * features.shape[0]


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:  # type: ignore[override]
        ctx.rows = features.shape[0]
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        # A reduce-scatter would send less, but gloo has none; these are features, not parameters.
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.rows
        return grad[first : first + ctx.rows]


def cached_losses(
    encode: Callable[[T], tuple[Tensor, Tensor]],
    parts: Sequence[T],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    shared: Sequence[Tensor] = (),
    statistics: Sequence[Tensor] = (),
) -> Iterator[tuple[Tensor, Tensor]]:
    """A contrastive loss over a batch that does not fit into memory, part by part (GradCache, arXiv 2101.06983).

    Every part is encoded without a graph; the loss is taken over all features; then each part is encoded again, with
    the same random numbers, and gets the gradient of its features. The result is that of one large batch, but for
    layers that mix the images of a batch (BatchNorm), which see a part at a time.

    Args:
        encode: a part of the batch -> image and text features, (b, D) each.
        parts: the batch in parts that fit.
        loss: features of the whole batch -> scalar.
        shared: parameters that ``loss`` reads itself: temperature and bias.
        statistics: what encoding changes in passing, such as BatchNorm's running mean; the pass without a graph leaves
            no trace in them, so that each part counts once.

    Yields:
        for each part a scalar whose gradient is the part's share of that of the loss, and the loss of the whole batch,
        without a graph. Run the scalar backward before the next is asked for: then memory holds one part. The last one
        has the gradients of ``shared``, so that processes exchange them with everything else.

    Raises:
        ValueError: without parts.
    """
    if not parts:
        raise ValueError("a batch needs at least one part")
    states, encoded, before = [], [], Values(statistics)
    for part in parts:
        states.append(RandomState())
        with torch.no_grad():
            encoded.append(encode(part))
    before.restore()
    sizes = [len(image) for image, _ in encoded]
    features = [torch.cat(side).requires_grad_() for side in zip(*encoded, strict=True)]
    learned = [p for p in shared if p.requires_grad]
    with torch.enable_grad():
        value = loss(*features)
    image_grad, text_grad, *learned_grads = torch.autograd.grad(value, [*features, *learned])
    value = value.detach()
    after = RandomState()
    pieces = zip(parts, states, image_grad.split(sizes), text_grad.split(sizes), strict=True)
    for number, (part, state, of_image, of_text) in enumerate(pieces, 1):
        state.restore()
        image, text = encode(part)
        surrogate = (image * of_image).sum() + (text * of_text).sum()
        if number == len(parts):
            surrogate = surrogate + sum((p * g).sum() for p, g in zip(learned, learned_grads, strict=True))
        yield surrogate, value
    after.restore()


class RandomState:
    """The state of torch's generators at a moment."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Put torch's generators back to where they stood."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


class Values:
    """What tensors hold at a moment."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.kept = [t.clone() for t in tensors]

    def restore(self) -> None:
        """Put the tensors back to what they were."""
        with torch.no_grad():
            for now, then in zip(self.tensors, self.kept, strict=True):
                now.copy_(then)
