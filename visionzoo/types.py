"""The types that every layer shares.

Legend: B batch, N patch tokens (or masks), T texts, P prefix tokens, D width, (h, w) token grid, (H, W) pixels.
"""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from visionzoo.plain import check_types

if TYPE_CHECKING:  # the commands that only look names up do without torch
    from collections.abc import Iterable

    import torch
    from torch import Tensor

#: Everything a backbone can declare. A job asks for what it needs by these names.
CAPABILITIES: dict[str, str] = {
    "tokens": "can encode a subset of its patch tokens (MAE, FLIP)",
    "masked_image": "can replace patch embeddings by a mask token (SimMIM, iBOT)",
    "pyramid": "gives feature maps at several strides",
    "attention_maps": "gives its attention weights",
    "any_size": "takes input sizes other than the one it was built for",
}

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
RESIZE_MODES = ("shortest", "longest", "squash")
PAD_ANCHORS = ("center", "top_left")
#: Pixels have at most 32 bits, and statistics are about theirs.
_MOST_SCALE = 2.0**32


class Features(NamedTuple):
    """What a backbone returns for a batch of images.

    It is no tensor: what is asked of it as if it were one is an error that says which part to take.
    """

    pooled: Tensor  #: (B, pooled_dim), what a linear classifier reads
    grid: Tensor  #: (B, grid_dim, h, w), what a dense head reads
    prefix: Tensor  #: (B, P, grid_dim), class and register tokens; P may be 0

    def __repr__(self) -> str:
        parts = (f"{name}={_shape(value)}" for name, value in self._asdict().items())
        return f"Features({', '.join(parts)}): take {_PARTS}"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"Features have no {name!r}: take {_PARTS}")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | slice):
            return tuple.__getitem__(self, key)
        raise TypeError(f"Features are not indexed like a tensor: take {_PARTS}")

    def _refuse(self, *_: Any) -> Any:
        """Arithmetic, as of a tensor; a tuple would repeat itself."""
        raise TypeError(f"Features are no tensor, and have no arithmetic: take {_PARTS}")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __matmul__ = __neg__ = _refuse  # type: ignore[misc]


_PARTS = (
    ".pooled (B, pooled_dim) for a classifier, .grid (B, grid_dim, h, w) for a dense head, .prefix (B, P, grid_dim) "
    "for class and register tokens"
)


def _shape(value: Any) -> str:
    if not hasattr(value, "shape"):
        return repr(value)
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


class Tokens(NamedTuple):
    """A batch of patch tokens on the way through a Transformer."""

    x: Tensor  #: (B, N, D) patch tokens, in raster order, or in the order of ``keep``
    prefix: Tensor  #: (B, P, D) class and register tokens; P may be 0
    grid_size: tuple[int, int]  #: (h, w) of the whole image, also when some tokens were dropped
    keep: Tensor | None = None  #: (B, N) int64 raster indices of the tokens in ``x``; None means all h * w


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """What was made on the CPU, any shape, on a device; by way of page-locked memory, so that nobody waits for a GPU.

    Random numbers are drawn on the CPU where a run is to be the same on every device.
    """
    if str(device).startswith("cuda") and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _moved(parts: Iterable[Any], device: torch.device | str) -> list[Any]:
    return [x.to(device, non_blocking=True) if hasattr(x, "to") else x for x in parts]


class ImageBatch(NamedTuple):
    """A batch of labelled images as it leaves the loader.

    In evaluation an unreadable image is dropped, so B may be smaller than asked for, and even 0.
    """

    images: Tensor  #: (B, C, H, W) uint8 in 0..255, RGB
    labels: Tensor  #: (B,) int64 class indices, or (B, K) float32 in {0, 1} for multi-label data
    index: Tensor  # type: ignore[assignment]  #: (B,) int64, position of each sample in its source
    bad: tuple[tuple[str, str], ...] = ()  #: (sample id, reason) of every image that could not be read

    def to(self, device: torch.device | str) -> ImageBatch:
        """The batch with its tensors on a device; where they lie in page-locked memory, nobody waits for the copy."""
        return ImageBatch(*_moved(self, device))


#: Views of an image that have the size which the model was built for; all others are small.
LARGE_VIEWS = 2


class ViewBatch(NamedTuple):
    """A batch of images, each seen several times, as it leaves the loader."""

    views: tuple[Tensor, ...]  #: (B, C, H, W) uint8 in 0..255 each, RGB; large ones first, then small ones
    labels: Tensor  #: (B,) int64 class indices where the data have them, else -1; never learned from
    index: Tensor  # type: ignore[assignment]  #: (B,) int64, position of each sample in its source
    bad: tuple[tuple[str, str], ...] = ()  #: (sample id, reason) of every image that could not be read
    #: (M,) int64, rising: the patches of the large views that the student does not see, as places in (2, B, h, w)
    hidden: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """The first view of each image, (B, C, H, W)."""
        return self.views[0]

    def to(self, device: torch.device | str) -> ViewBatch:
        """The batch with its tensors on a device; where they lie in page-locked memory, nobody waits for the copy."""
        views = tuple(view.to(device, non_blocking=True) for view in self.views)
        return ViewBatch(views, *_moved(self[1:], device))


class CaptionBatch(NamedTuple):
    """A batch of images with captions as it leaves the loader. Texts travel as strings: a tokenizer belongs to a model.

    In training every image has one caption, so T = B and ``text_image`` counts up. In evaluation an image has all its
    captions, and an unreadable image is dropped with them, so B and T may be 0.
    """

    images: Tensor  #: (B, C, H, W) uint8 in 0..255, RGB
    texts: tuple[str, ...]  #: T captions, none empty (a list of them once the batch lies in page-locked memory)
    text_image: Tensor  #: (T,) int64 in 0..B-1, the image in this batch that each text describes; never falls
    index: Tensor  # type: ignore[assignment]  #: (B,) int64, position of each sample in its source
    bad: tuple[tuple[str, str], ...] = ()  #: (sample id, reason) of every sample that could not be read

    def to(self, device: torch.device | str) -> CaptionBatch:
        """The batch with its tensors on a device; where they lie in page-locked memory, nobody waits for the copy."""
        return CaptionBatch(*_moved(self, device))


#: Why an object is left out of a :class:`SegmentBatch`, in the order of the columns of ``left_out``.
LEFT_OUT = ("small", "empty", "crowd")


class SegmentBatch(NamedTuple):
    """A batch of images with the masks of their objects as it leaves the loader.

    Masks of all images lie behind one another: those of image ``b`` are ``masks[image_index == b]``. An image may have
    none in evaluation, never in training. In evaluation an unreadable image is dropped, so B and N may be 0.
    """

    images: Tensor  #: (B, C, H, W) uint8 in 0..255, RGB
    masks: Tensor  #: (N, H, W) bool, at the resolution of the images, none empty; objects may overlap
    image_index: Tensor  #: (N,) int64 in 0..B-1, the image in this batch that each mask belongs to; never falls
    names: tuple[str, ...]  #: N, category or caption of each object; "" where the data do not say
    valid: Tensor  #: (B, H, W) bool, where there is image: not padding, and not pixels that nobody labelled (void)
    sizes: Tensor  #: (B, 2) int64, (height, width) of each upright image
    left_out: Tensor  #: (B, 3) int64, objects of each image that were left out, by :data:`LEFT_OUT`
    index: Tensor  # type: ignore[assignment]  #: (B,) int64, position of each sample in its source
    bad: tuple[tuple[str, str], ...] = ()  #: (sample id, reason) of every sample that could not be read

    def to(self, device: torch.device | str) -> SegmentBatch:
        """The batch with its tensors on a device; where they lie in page-locked memory, nobody waits for the copy."""
        return SegmentBatch(*_moved(self, device))


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How pixels become a model's input. Saved with the weights; one spec serves training, evaluation and inference.

    An image (uint8, RGB) is resized and cropped to ``image_size``, divided by ``value_scale``, then normalised by
    ``mean`` and ``std``. ``resize_mode`` is timm's crop mode under its plain name: ``shortest`` (timm ``center``:
    shortest edge to ``image_size / crop_pct``, centre crop), ``squash`` (both edges, aspect ratio not kept, centre
    crop) or ``longest`` (timm ``border``; SAM with ``crop_pct=1``: longest edge, then padding at ``pad_anchor`` with
    ``pad_value``).
    """

    image_size: tuple[int, int]  #: (H, W) of the model's input
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  #: per channel, in units of the scaled value
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    value_scale: float = 255.0  #: pixel values are divided by this before mean and std
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    crop_pct: float = (
        1.0  #: input edge as a share of the resized edge; above 1 the image is padded (VOLO at 448 pixels)
    )
    pad_anchor: str = "center"
    pad_value: int | tuple[int, ...] = 0  #: in 0..255; one number, or one per channel as timm pads with the mean colour

    def __post_init__(self) -> None:
        check_types(vars(self), typing.get_type_hints(type(self)), "Preprocess.")
        for name, allowed in (
            ("interpolation", INTERPOLATIONS),
            ("resize_mode", RESIZE_MODES),
            ("pad_anchor", PAD_ANCHORS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"Preprocess.{name}={value!r} is unknown; use one of {', '.join(allowed)}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"Preprocess.image_size={self.image_size} must be (height, width), both at least 1")
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0 or self.value_scale <= 0:
            raise ValueError(
                f"Preprocess.mean={self.mean} and std={self.std} need one value per channel, "
                f"std and value_scale={self.value_scale} above 0"
            )
        if max(map(abs, (*self.mean, *self.std, self.value_scale))) > _MOST_SCALE:
            raise ValueError(
                f"Preprocess.mean={self.mean}, std={self.std}, value_scale={self.value_scale}: none can be above "
                f"{_MOST_SCALE:g}"
            )
        pad = self.pad_value if isinstance(self.pad_value, tuple) else (self.pad_value,)
        if len(pad) not in (1, len(self.mean)) or not all(0 <= p <= 255 for p in pad):
            raise ValueError(f"Preprocess.pad_value={self.pad_value} must be in 0..255, one number or one per channel")
        if not 0 < self.crop_pct <= 2:
            raise ValueError(f"Preprocess.crop_pct={self.crop_pct} must be in (0, 2]")

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: for a key that is not a field, none for ``image_size``, or a value that does not fit.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown preprocess keys {unknown}; known are {sorted(known)}")
        if "image_size" not in values:
            raise ValueError("the preprocessing lacks image_size")
        fitted: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fitted)


@dataclass(frozen=True, kw_only=True)
class PyramidLevel:
    """One feature map of a backbone's pyramid."""

    channels: int
    stride: int  #: input pixels per cell


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What is known of a backbone before it is built."""

    name: str
    family: str
    image_size: tuple[int, int]  #: (H, W) it was trained at
    embed_dim: int  #: width of the (last) stage
    pooled_dim: int
    grid_dim: int
    stride: int  #: input pixels per cell of ``Features.grid``
    prefix_tokens: int
    params: int  #: without a head
    gmacs: float  #: 1e9 multiply-adds for one image at ``image_size``, without a head
    capabilities: frozenset[str]
    preprocess: Preprocess
    pyramid: tuple[PyramidLevel, ...]  #: finest first; strides may repeat; empty without the capability
    paper: str
    licence: str  #: of the published weights, not of this code
    weights: str | None  #: where published weights come from, as ``weights=`` takes it
