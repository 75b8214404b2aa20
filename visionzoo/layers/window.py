"""Cutting a token grid into windows, shifted or not, at any size (Swin, arXiv 2103.14030, section 3.2).

Roll, padding and partition are one gather: a layout names, for each place in the windows, the token that stands there.

What happens at sizes that windows do not divide, axis by axis:

- longer than the window: zeros are added at the end of what the attention reads (after v1's norm), then comes the
  shift. Tokens see the padding, as in the reference: Microsoft's Swin for detection and ``transformers.SwinModel``
  (timm rolls first and pads then).
- as long as the window: one window, no shift (timm, and Microsoft's Swin for classification).
- shorter than the window: padded to one window, no shift, and the padding is masked. The window is never made smaller,
  so each pair of tokens keeps the learned bias of its distance. (timm shrinks the window here, so that v1's bias table
  has another shape; ``transformers`` does too and fails.)

Legend: B batch, C channels, (h, w) token grid, (hp, wp) the padded grid, s window side, n windows per image, N = s * s.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.layers.fast_path import is_open, is_recorded

#: Added to the logit of a pair from two sides of the image's border, as in every published Swin; not quite a ban in v2.
BORDER = -100.0
#: A forward pass of four stages uses eight layouts; a handful of image sizes stay at hand.
CACHED_LAYOUTS = 64


class WindowLayout(NamedTuple):
    """Where each token of a grid stands in its windows."""

    grid: tuple[int, int]  #: (h, w)
    padded: tuple[int, int]  #: (hp, wp), multiples of ``window``
    window: int  #: s
    shift: tuple[int, int]  #: rows and columns that the grid is rolled up and left by
    order: Tensor | None  #: (hp * wp,) int64, raster index of the token at each place; None if the same
    inverse: Tensor | None  #: (hp * wp,) int64, place of each token
    mask: Tensor | None  #: (n, N, N) float32 to add to the logits: 0, BORDER or, for padding, -inf

    @property
    def num_windows(self) -> int:
        """Windows that the padded grid is cut into."""
        return (self.padded[0] // self.window) * (self.padded[1] // self.window)


def window_layout(grid: tuple[int, int], window: int, shift: int, like: Tensor) -> WindowLayout:
    """The layout of a (h, w) grid, on the device of ``like``.

    Args:
        grid: (h, w), both at least 1.
        window: side s.
        shift: how far windows are shifted, 0 for not at all; an axis that fits into one window is never shifted.
        like: any tensor of the forward pass.
    """
    if is_open(*grid):
        return _build_open(grid, window, shift, like.device)
    return (_cached if cacheable(like) else _build)(grid, window, shift, like.device)


def cacheable(like: Tensor) -> bool:
    """Whether tensors made for a forward pass of ``like``, of any shape, may be kept: not where they would be traced
    or fake."""
    graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not graph and type(like) in (Tensor, nn.Parameter)


@lru_cache(maxsize=CACHED_LAYOUTS)
def _cached(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowLayout:
    with torch.inference_mode(False):  # an inference tensor could not serve a training step later
        return _build(grid, window, shift, device)


def _build(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowLayout:
    hp, wp = (-(-n // window) * window for n in grid)
    sh, sw = (shift if n > window else 0 for n in grid)
    down, across = hp // window, wp // window

    def windowed(values: Tensor) -> Tensor:
        return values.view(down, window, across, window).permute(0, 2, 1, 3).reshape(-1)

    order = inverse = mask = None
    if sh or sw or across > 1:
        places = torch.arange(hp * wp, device=device)
        order = windowed(places.view(hp, wp).roll((-sh, -sw), (0, 1)))
        unwindowed = places.view(down, across, window, window).permute(0, 2, 1, 3).reshape(hp, wp)
        inverse = unwindowed.roll((sh, sw), (0, 1)).reshape(-1)
    if sh or sw or min(grid) < window:
        rows, cols = torch.arange(hp, device=device)[:, None], torch.arange(wp, device=device)[None, :]
        # A side of the border, after the roll: 0 before it, 1 after it. Only the last windows hold both.
        sides = 2 * (rows >= hp - sh) + (cols >= wp - sw)
        side = windowed(sides).view(-1, 1, window * window)
        mask = torch.where(side == side.transpose(1, 2), 0.0, BORDER)
        beyond = ((rows >= grid[0]) & (grid[0] < window)) | ((cols >= grid[1]) & (grid[1] < window))
        mask = mask.masked_fill(windowed(beyond).view(-1, 1, window * window), -torch.inf)
    return WindowLayout(grid, (hp, wp), window, (sh, sw), order, inverse, mask)


def _build_open(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> WindowLayout:
    """What :func:`_build` gives, for a graph that leaves (h, w) open: arithmetic alone, with the same values."""
    down, across = ((n + window - 1) // window for n in grid)
    hp, wp = down * window, across * window
    several = 1 - 1 // down, 1 - 1 // across  # 1 where an axis has several windows, 0 where it fits into one
    sh, sw = shift * several[0], shift * several[1]
    # No tensor has an axis of as many windows as there are in a row or column: an exporter would fix what is 1 there.
    places = torch.arange(hp * wp, device=device)
    number, inside = places // window**2, places % window**2
    below = number // across
    row, col = below * window + inside // window, (number - below * across) * window + inside % window

    def rolled(values: Tensor, by: int, n: int) -> Tensor:
        """``(values + by) % n``; ONNX's exporter knows no remainder of an open size."""
        values = values + by
        return torch.where(values < n, values, values - n)

    order = rolled(row, sh, hp) * wp + rolled(col, sw, wp)
    r = rolled(torch.arange(hp, device=device), hp - sh, hp)
    c = rolled(torch.arange(wp, device=device), wp - sw, wp)
    place_of_row = (r // window) * (across * window**2) + r % window * window
    place_of_col = (c // window) * window**2 + c % window
    inverse = (place_of_row[:, None] + place_of_col[None, :]).reshape(-1)
    side = (2 * (row >= hp - sh).long() + (col >= wp - sw).long()).view(-1, 1, window * window)
    mask = torch.where(side == side.transpose(1, 2), 0.0, BORDER)
    # padding is masked on an axis of one window
    beyond = (row >= grid[0] + several[0] * hp) | (col >= grid[1] + several[1] * wp)
    mask = mask.masked_fill(beyond.view(-1, 1, window * window), -torch.inf)
    return WindowLayout(grid, (hp, wp), window, (sh, sw), order, inverse, mask)


class _Reorder(torch.autograd.Function):
    """``x.index_select(1, order)`` for a permutation: its gradient is a gather too, where autograd would scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        del inverse
        return x.index_select(1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad, inverse, order), None, None


def _reorder(x: Tensor, order: Tensor, inverse: Tensor | None) -> Tensor:
    """``x`` (B, N, C) with its tokens in another order."""
    # a traced graph that is saved holds no Python, and forward-mode AD knows no rule; the compiler does
    if is_recorded() and not torch.compiler.is_compiling():
        return x.index_select(1, order)
    return _Reorder.apply(x, order, inverse)


def to_windows(x: Tensor, layout: WindowLayout) -> Tensor:
    """(B, h, w, C) -> (B * n, N, C), the windows of an image in raster order; padding is zero."""
    (h, w), (hp, wp) = layout.grid, layout.padded
    b, c = x.shape[0], x.shape[-1]
    if is_open(h, w) or (h, w) != (hp, wp):
        x = F.pad(x, (0, 0, 0, wp - w, 0, hp - h))
    x = x.reshape(b, hp * wp, c)
    if layout.order is not None:
        x = _reorder(x, layout.order, layout.inverse)
    n = hp * wp // layout.window**2  # not the property, which torch 2.8's compiler does not trace
    return x.reshape(b * n, layout.window**2, c)


def from_windows(x: Tensor, layout: WindowLayout) -> Tensor:
    """(B * n, N, C) -> (B, h, w, C), the inverse of :func:`to_windows`; what stands in the padding is dropped."""
    (h, w), (hp, wp) = layout.grid, layout.padded
    c = x.shape[-1]
    b = x.shape[0] // (hp * wp // layout.window**2)
    x = x.reshape(b, hp * wp, c)
    if layout.inverse is not None:
        x = _reorder(x, layout.inverse, layout.order)
    return x.view(b, hp, wp, c)[:, :h, :w]
