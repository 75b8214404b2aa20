"""Contrastive losses of image and text features, in float32 whatever the precision of the features.

Neither loss ever holds the whole matrix of similarities: it is made a few rows at a time, and the gradient of each
chunk is taken at once, so that memory grows with the batch and not with its square.

Legend: B pairs of this process, W processes, N = W * B pairs in all, D width; features have length one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

#: (B, D) -> the features of all processes (N, D) in one order, and the row where this process's own begin.
Gather = Callable[[Tensor], tuple[Tensor, int]]

#: Similarities held at once: 16 MiB in float32.
CHUNK = 2**22
#: In CLIP's loss exp(logit_scale) never counts for more (arXiv 2103.00020, section 2.5).
MAX_SCALE = 100.0


def info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    groups: Tensor | None = None,
    gather: Gather | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """CLIP's loss (arXiv 2103.00020, figure 3): each image picks its text among all, and each text its image.

    In slow form, with s = min(exp(logit_scale), 100)::

        for i in range(N):
            rows += logsumexp([s * image[i] @ text[j] for j in range(N)]) - s * image[i] @ text[i]
            cols += logsumexp([s * image[j] @ text[i] for j in range(N)]) - s * image[i] @ text[i]
        loss = (rows + cols) / (2 * N)

    Where several pairs are of one group, the last term of a row is its mean over the texts of that group (UniCL, arXiv
    2204.03610, equation 3), and of a column over the images: a text is no wrong answer to its equal.

    Args:
        image_features: (B, D), of length one.
        text_features: (B, D), row i belonging to image i.
        logit_scale: scalar, the logarithm of the inverse temperature, as it is learned.
        groups: (B,) int64, the same number for pairs whose images and texts all belong together, such as those of
            equal captions; numbers mean the same in all processes. None where every pair stands alone.
        gather: with several processes, what brings their features together, with gradients, for instance
            :func:`visionzoo.losses.gather.gather_features`. The loss is then the mean over this process's own rows, so
            that the mean over processes, which data-parallel training takes of gradients, is the loss of all.
        chunk_rows: rows of the matrix held at once; None for about 16 MiB.

    Returns:
        float32 scalar (float64 for float64 features).

    Raises:
        ValueError: for features or groups of unequal or other shapes, no pairs, or a temperature that is not finite.
    """
    image, text, scale = _prepare(image_features, text_features, logit_scale, math.log(MAX_SCALE))
    with torch.autocast(image.device.type, enabled=False):
        images, texts, first = _gather_all(image, text, gather)
        pairs = _Pairs.of(groups, image, first, gather)
        rows = _CrossEntropy.apply(image, texts, scale, pairs, chunk_rows)
        cols = _CrossEntropy.apply(text, images, scale, pairs, chunk_rows)
        return (rows + cols) / (2 * image.shape[0])


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    groups: Tensor | None = None,
    gather: Gather | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """SigLIP's loss (arXiv 2303.15343, equation 1): for each pair of an image and a text, whether they belong together.

    In slow form, with s = exp(logit_scale)::

        for i in range(N):
            for j in range(N):
                z = 1 if i == j or groups[i] == groups[j] else -1
                loss -= log(sigmoid(z * (s * image[i] @ text[j] + logit_bias))) / N

    The scale has no limit here: neither the paper's algorithm 1 nor its code (big_vision's ``siglip.py``) nor
    open_clip's ``SigLipLoss`` has one, and the released models ended training above CLIP's (B/16 at 117).

    Args:
        logit_bias: scalar, learned.

    The other arguments, the result and the errors are those of :func:`info_nce`.
    """
    image, text, scale = _prepare(image_features, text_features, logit_scale, None)
    with torch.autocast(image.device.type, enabled=False):
        _, texts, first = _gather_all(None, text, gather)
        bias = logit_bias.to(image.dtype)
        pairs = _Pairs.of(groups, image, first, gather)
        return _PairwiseSigmoid.apply(image, texts, scale, bias, pairs, chunk_rows) / image.shape[0]


def _prepare(image: Tensor, text: Tensor, logit_scale: Tensor, limit: float | None) -> tuple[Tensor, Tensor, Tensor]:
    if image.ndim != 2 or image.shape != text.shape or image.shape[0] == 0:
        raise ValueError(
            f"image features {tuple(image.shape)} and text features {tuple(text.shape)} must both be (B, D), with at "
            "least one pair"
        )
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    scale = logit_scale.to(dtype)
    if limit is not None:  # straight through: at the limit, where released weights stand, it still learns to fall
        scale = scale + (scale.clamp(max=limit) - scale).detach()
    scale = scale.exp().reshape(())
    return image.to(dtype), text.to(dtype), scale


def _gather_all(image: Tensor | None, text: Tensor, gather: Gather | None) -> tuple[Any, Tensor, int]:
    if gather is None:
        return image, text, 0
    texts, first = gather(text)
    return (None if image is None else gather(image)[0]), texts, first


class _Pairs(NamedTuple):
    """Which keys belong to a query: key ``first + i`` to query i, and those of its group."""

    first: int
    own: Tensor | None  #: (B,)
    all: Tensor | None  #: (N,)

    @classmethod
    def of(cls, groups: Tensor | None, image: Tensor, first: int, gather: Gather | None) -> _Pairs:
        if groups is None:
            return cls(first, None, None)
        if groups.shape != image.shape[:1]:
            raise ValueError(f"groups {tuple(groups.shape)} must be ({image.shape[0]},), a number for each pair")
        return cls(first, groups, groups if gather is None else gather(groups.unsqueeze(1))[0].squeeze(1))

    def total(self, values: Tensor, chunk: slice, *, mean: bool) -> Tensor:
        """The sum of ``values`` (b, N) over the pairs that belong together, or of each row's mean over its own."""
        if self.own is None:
            return values[self._places(values, chunk)].sum()
        return (values * self._weights(values, chunk, mean)).sum()

    def subtract(self, slope: Tensor, chunk: slice, *, mean: bool) -> None:
        """Take the gradient of :meth:`total` off ``slope`` (b, N)."""
        if self.own is None:
            slope[self._places(slope, chunk)] -= 1
        else:
            slope -= self._weights(slope, chunk, mean)

    def _places(self, like: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        first, count = self.first + chunk.start, like.shape[0]
        return torch.arange(count, device=like.device), torch.arange(first, first + count, device=like.device)

    def _weights(self, like: Tensor, chunk: slice, mean: bool) -> Tensor:
        assert self.own is not None
        assert self.all is not None
        belongs = self.own[chunk, None].eq(self.all).to(like.dtype)
        return belongs / belongs.sum(dim=1, keepdim=True) if mean else belongs


def _chunks(rows: int, columns: int, chunk_rows: int | None) -> Iterator[slice]:
    step = max(1, CHUNK // columns) if chunk_rows is None else chunk_rows
    if step < 1:
        raise ValueError(f"chunk_rows={chunk_rows} must be at least 1")
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class _Gradients:
    """What both losses accumulate chunk by chunk: the gradients for queries (B, D), keys (N, D) and scale."""

    def __init__(self, ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor) -> None:
        self.keys = keys
        self.scale = scale
        self.of_queries = torch.empty_like(queries) if ctx.needs_input_grad[0] else None
        self.of_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        self.of_scale = torch.zeros_like(scale)

    def add(self, chunk: slice, queries: Tensor, cosines: Tensor, slope: Tensor) -> None:
        """
        Args:
            chunk: rows of the queries.
            queries: (b, D), those rows.
            cosines: (b, N), their products with the keys.
            slope: (b, N), the gradient of the sum for the logits.
        """
        self.of_scale += (slope * cosines).sum()
        if self.of_queries is not None:
            self.of_queries[chunk] = (slope @ self.keys).mul_(self.scale)
        if self.of_keys is not None:
            self.of_keys.addmm_(slope.T, queries * self.scale)


def _first_order(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The gradients that the forward pass has kept, times that of the loss.

    Raises:
        RuntimeError: where they are to be differentiated in turn: they are numbers, and a term would be missing.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this contrastive loss computes its gradient on the way and has no second one (create_graph=True); for a "
            "gradient penalty take torch.nn.functional.cross_entropy of the whole matrix of similarities"
        )
    return [None if g is None else g * grad for g in ctx.saved_tensors]


class _CrossEntropy(torch.autograd.Function):
    """Sum over queries of the cross entropy of ``scale * queries @ keys.T`` with the keys that belong to each."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, pairs: _Pairs, chunk_rows: int | None
    ) -> Tensor:
        total = scale.new_zeros(())
        learning = any(ctx.needs_input_grad[:3])
        gradients = _Gradients(ctx, queries, keys, scale) if learning else None
        for chunk in _chunks(queries.shape[0], keys.shape[0], chunk_rows):
            part = queries[chunk]
            cosines = part @ keys.T
            log_p = (cosines * scale).log_softmax(dim=1)
            total -= pairs.total(log_p, chunk, mean=True)
            if gradients is not None:
                slope = log_p.exp_()
                pairs.subtract(slope, chunk, mean=True)
                gradients.add(chunk, part, cosines, slope)
        if gradients is not None:
            ctx.save_for_backward(gradients.of_queries, gradients.of_keys, gradients.of_scale)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return (*_first_order(ctx, grad), None, None)


class _PairwiseSigmoid(torch.autograd.Function):
    """Sum over all pairs of ``-log(sigmoid(z * (scale * query @ key + bias)))``, z = 1 where they belong together."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor,
        pairs: _Pairs,
        chunk_rows: int | None,
    ) -> Tensor:
        total = scale.new_zeros(())
        of_bias = torch.zeros_like(bias)
        learning = any(ctx.needs_input_grad[:4])
        gradients = _Gradients(ctx, queries, keys, scale) if learning else None
        for chunk in _chunks(queries.shape[0], keys.shape[0], chunk_rows):
            part = queries[chunk]
            cosines = part @ keys.T
            logits = cosines * scale + bias
            # -log sigmoid(-x) for all, and x less where the pair belongs together: -log sigmoid(x) = that - x.
            total += F.softplus(logits).sum() - pairs.total(logits, chunk, mean=False)
            if gradients is not None:
                slope = logits.sigmoid_()
                pairs.subtract(slope, chunk, mean=False)
                of_bias += slope.sum()
                gradients.add(chunk, part, cosines, slope)
        if gradients is not None:
            ctx.save_for_backward(gradients.of_queries, gradients.of_keys, gradients.of_scale, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return (*_first_order(ctx, grad), None, None)
