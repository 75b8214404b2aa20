"""One way to open an image, whatever it is: a path, bytes, an open file, an array or a PIL image.

The result is always an upright RGB image of 8 bits per channel. What is lost on the way:

* transparency: the alpha channel is dropped, as PIL's own ``convert("RGB")`` (hence torchvision's and timm's readers)
  does;
* depth: 16-bit greys are divided by 257, so that the same value has the same brightness in every image;
* motion: of an animated or multi-page file the first frame is taken.

A file of more than 512 MiB is refused before it is read; ``VISIONZOO_MAX_IMAGE_BYTES`` says another limit.
PIL's global settings (``MAX_IMAGE_PIXELS``, ``LOAD_TRUNCATED_IMAGES``) are respected and never changed.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from visionzoo.data.jpeg import is_plain, top_rows
from visionzoo.files import is_address
from visionzoo.limits import IMAGE_FILE

#: Everything :func:`open_image` takes.
if TYPE_CHECKING:  # workers that only decode do without torch
    from torch import Tensor

    ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | np.ndarray | Image.Image | Tensor
else:
    ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | np.ndarray | Image.Image

#: (left, top, right, bottom) in pixels; right and bottom lie outside.
Box = tuple[int, int, int, int]

#: What PIL's decoders raise on hostile bytes. Beside OSError they leak the errors of the parsing code itself.
_DECODER_ERRORS = (
    OSError,  # truncated, unidentified, missing file, symbolic-link loop
    SyntaxError,  # broken PNG chunks
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # only where warnings are errors
)

_EXIF_ORIENTATION = 0x0112
#: Where PIL looks for it.
_SAYS_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
#: From this orientation on, width and height are exchanged.
SIDEWAYS = 5
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Formats in which a value comes back as another.
_LOSSY = {"JPEG", "MPO", "HEIF", "AVIF"}
#: What to do about images of Apple's phones.
HEIC_HINT = "pip install 'visionzoo[heic]' reads them"
#: Registered with PIL, but without a decoder of its own: most can be named and not read, and for EPS it runs
#: Ghostscript, a program that a file may keep busy for ever.
_NO_DECODER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


class UnreadableImage(ValueError):
    """An image that cannot be decoded. ``reason`` says why in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str]]:
        return type(self), (self.reason,)


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What an image is before it is converted."""

    width: int  #: pixels, after EXIF orientation
    height: int
    mode: str  #: PIL's word: "RGB", "L", "P", "CMYK", "I;16", ...
    format: str  #: "JPEG", "PNG", ...; "array" for one that never was a file


@cache
def _load_heif() -> None:
    """Let PIL read HEIC, which phones write, where the extra for it is installed."""
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


@cache
def image_extensions() -> frozenset[str]:
    """File endings that PIL can read, in lower case with the dot."""
    _load_heif()
    Image.init()
    registered = Image.registered_extensions().items()
    return frozenset(ext for ext, name in registered if name in Image.OPEN and name not in _NO_DECODER)


def open_image(source: ImageInput) -> Image.Image:
    """Decode an image.

    Args:
        source: a path, the bytes of a file, a binary file object, a PIL image of any mode, or an array: (H, W), (H, W,
            1), (H, W, 3) or (H, W, 4); uint8 in 0..255, uint16 in 0..65535, bool, or float in 0..1; or a tensor of
            these values, (H, W), (1, H, W), (3, H, W) or (4, H, W), on any device. A float image outside 0..1, such as
            one that is normalised already, is refused.

    Returns:
        an upright image of mode "RGB", fully in memory. A PIL image that is one already comes back as it is.

    Raises:
        UnreadableImage: with the reason. Missing, empty, truncated and corrupt files, decompression bombs, and arrays
            of another shape or type.
    """
    with _decoded(source) as image:
        return _to_rgb(_upright(image))


Choose = Callable[[tuple[int, int]], Box]


def open_crop(source: ImageInput, choose: Choose) -> Image.Image:
    """The part of an image that a box shows. Of a JPEG no more is decoded than that needs.

    Args:
        source: see :func:`open_image`.
        choose: called once with the (width, height) of the upright image; gives a box inside it.

    Returns:
        RGB, exactly ``open_image(source).crop(box)``.

    Raises:
        UnreadableImage: as :func:`open_image`. Damage below the box may go unseen.
    """
    data = _contents(source)
    box = None
    if isinstance(data, bytes) and (image := _plain_jpeg(data)) is not None:
        box = choose(image.size)
        with _reported():
            canvas = top_rows(image, data, box[3])
        if canvas is not None:
            return canvas.image.crop(box)
    whole = open_image(data)
    return whole.crop(box or choose(whole.size))


def open_region(source: ImageInput, choose: Choose, enough: tuple[int, int]) -> np.ndarray:
    """About the part of an image that a box shows, as fast as it can be had.

    A JPEG whose box is at least 2, 4 or 8 times as large as needed is decoded at that fraction of its size, where the
    box's edges are rounded to whole pixels.

    Args:
        source, choose: as for :func:`open_crop`.
        enough: (width, height) that the part needs.

    Returns:
        (h, w, 3 or 4) uint8, RGB and perhaps a channel without meaning. The next call in this thread overwrites it.

    Raises:
        UnreadableImage: as :func:`open_crop`.
    """
    data = _contents(source)
    box = None
    if isinstance(data, bytes) and (image := _plain_jpeg(data)) is not None:
        left, top, right, bottom = box = choose(image.size)
        times = min((right - left) // enough[0], (bottom - top) // enough[1])
        scale = next((s for s in (8, 4, 2) if s <= times), 1)
        if scale > 1:
            image.draft("RGB", (image.width // scale, image.height // scale))
            left, top, right, bottom = (round(edge / scale) for edge in box)
        right, bottom = min(right, image.width), min(bottom, image.height)
        with _reported():
            canvas = top_rows(image, data, bottom, "RGBX")
        if canvas is not None and canvas.pixels is not None:
            return canvas.pixels[top:bottom, left:right]
    whole = open_image(data)
    return np.asarray(whole.crop(box or choose(whole.size)))


def _contents(source: ImageInput) -> ImageInput:
    """What is in a file, for a path; anything else as it is."""
    if isinstance(source, str | os.PathLike):
        with _reported(), _open_regular(source) as file:
            return file.read()
    return source


def _plain_jpeg(data: bytes) -> Image.Image | None:
    """The image if :func:`top_rows` can read it and it is upright, else None."""
    with _decoded(data) as image:
        return image if is_plain(image, data) and _orientation(image) == 1 else None


def open_values(source: ImageInput) -> np.ndarray:
    """The numbers of a label map as they are stored, (H, W) int32; of a palette image its indices.

    Raises:
        UnreadableImage: as :func:`open_image`; for a format that changes values, for colours, and for fractions.
    """
    with _decoded(source) as image:
        if image.format in _LOSSY:
            raise UnreadableImage(
                f"{image.format} changes the values around every edge, which makes objects of them; save label maps as "
                "PNG, from what drew them"
            )
        image.load()
        values = np.asarray(image)
        if image.mode in ("RGB", "RGBA", "LA"):
            greys = values[..., : len(image.mode) - ("A" in image.mode)]
            if (greys != greys[..., :1]).any() or ("A" in image.mode and (values[..., -1] != 255).any()):
                raise UnreadableImage(f"mode {image.mode} with colours; a label map has one channel of whole numbers")
            values = greys[..., 0]
        elif image.mode not in ("1", "L", "P", "F") and not image.mode.startswith("I"):
            raise UnreadableImage(f"mode {image.mode}; a label map has one channel of whole numbers")
        numbers: np.ndarray = values.astype(np.int32)
        if image.mode == "F" and (numbers != values).any():
            raise UnreadableImage("mode F with fractions; a label map has whole numbers")
        return numbers


def orientation_of(source: ImageInput) -> int:
    """How an image is stored, by EXIF: 1, upright, to 8. Takes and raises what :func:`open_image` does."""
    with _decoded(source) as image:
        return _orientation(image)


def turn_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """A mask (H, W) of the pixels as they are stored, turned as :func:`open_image` turns the picture."""
    method = _UPRIGHT.get(orientation)
    return mask if method is None else np.asarray(Image.fromarray(mask).transpose(method))


def image_facts(source: ImageInput) -> ImageFacts:
    """Decode an image fully, and say what it is. Takes and raises what :func:`open_image` does."""
    with _decoded(source) as image:
        kind, mode = image.format or "array", image.mode
        width, height = _to_rgb(_upright(image)).size
        return ImageFacts(width=width, height=height, mode=mode, format=kind)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn every failure inside the block into :class:`UnreadableImage`."""
    try:
        yield
    except UnreadableImage:
        raise
    except _DECODER_ERRORS as error:
        raise UnreadableImage(_reason(error)) from error


@contextmanager
def _decoded(source: ImageInput) -> Iterator[Image.Image]:
    """Open ``source`` for the time of the block, and turn every failure inside it into :class:`UnreadableImage`."""
    with _reported():
        if isinstance(source, Image.Image):
            yield source
        elif isinstance(source, np.ndarray):
            yield _from_array(source)
        elif _is_tensor(source):
            yield _from_array(_channels_last(source))
        elif isinstance(source, str | os.PathLike):
            with _open_regular(source) as file:
                yield _open_known(file)
        elif isinstance(source, bytes | bytearray | memoryview):
            if len(source) == 0:
                raise UnreadableImage("empty: zero bytes")
            check_size(len(source))
            yield _open_known(io.BytesIO(source))
        elif hasattr(source, "read"):
            yield _open_known(source)
        else:
            name = type(source).__name__
            raise UnreadableImage(f"{name} is not a path, bytes, a file, an array, a tensor or a PIL image")


def _open_known(file: Any) -> Image.Image:
    """``Image.open`` with HEIC, or what to install for it."""
    _load_heif()
    try:
        image = Image.open(file)
    except Image.UnidentifiedImageError:
        file.seek(0)
        if re.match(rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", file.read(12), re.DOTALL):
            if find_spec("pillow_heif") is None:
                raise UnreadableImage(f"HEIC, which PIL cannot read; {HEIC_HINT}") from None
            raise UnreadableImage("a damaged HEIC file") from None
        raise
    if image.format in _NO_DECODER:
        raise UnreadableImage(f"{image.format} is not read; save it as PNG or JPEG")
    return image


def _open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file; a pipe or a device would block for ever."""
    try:
        file_stat = os.stat(path)
    except FileNotFoundError:
        if is_address(path):
            raise UnreadableImage("an address, and addresses are not fetched; download the image first") from None
        raise
    if not stat.S_ISREG(file_stat.st_mode):
        raise UnreadableImage("a folder, not an image" if stat.S_ISDIR(file_stat.st_mode) else "not a regular file")
    if file_stat.st_size == 0:
        raise UnreadableImage("empty: zero bytes")
    check_size(file_stat.st_size)
    return open(path, "rb")


def check_size(size: int) -> None:
    """Raises UnreadableImage where ``size`` bytes are more than an image may have."""
    if (why := IMAGE_FILE.exceeded(size)) is not None:
        raise UnreadableImage(why)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image: no decoder knows this file"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"decompression bomb: {error}"
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def _orientation(image: Image.Image) -> int:
    """1, which is upright, to 8."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:  # broken EXIF is no reason to lose the picture
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # by which PIL turns a TIFF itself, and takes the orientation out
    method = _UPRIGHT.get(_orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    for key in _SAYS_ORIENTATION:  # whoever opens the result again must not turn it again
        turned.info.pop(key, None)
    return turned


def _to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise UnreadableImage(f"no pixels: {image.size[0]}x{image.size[1]}")
    image.load()
    mode = image.mode
    if mode == "RGB":
        # A frame of a film still hangs on its file and could move on; everything else goes out without a copy.
        return image if getattr(image, "fp", None) is None else image.copy()
    if mode == "P" and "transparency" in image.info:
        image, mode = image.convert("RGBA"), "RGBA"  # keeps PIL from warning about it
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_grey_to_uint8(np.asarray(image), mode)).convert("RGB")
    if mode == "LAB":
        return _lab_to_rgb(image)
    if mode in ("La", "RGBa"):  # premultiplied alpha has no direct way to RGB
        image = image.convert("LA" if mode == "La" else "RGBA")
    return image.convert("RGB")


def _grey_to_uint8(values: np.ndarray, mode: str) -> np.ndarray:
    """Greys of more than 8 bits, (H, W), to 0..255 by the full range of their type.

    32-bit modes do not say their range: the smallest of 1 (floats only), 255, 65535 that holds the largest value is
    taken, and beyond that the largest value itself.
    """
    if mode.startswith("I;16"):
        top = 65535.0
    else:
        values = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        largest = float(values.max())
        limits = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
        top = next((limit for limit in limits if largest <= limit), largest)
    scaled = values.astype(np.float64) * (255.0 / top)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted: Any = ImageCms.applyTransform(image, to_srgb)
    assert converted is not None
    return converted


def _is_tensor(source: Any) -> bool:
    """Whether it is one of torch's, without loading torch: whoever has a tensor has done that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _channels_last(tensor: Any) -> np.ndarray:
    """(H, W) or (C, H, W) tensor -> (H, W) or (H, W, C) array."""
    shape = tuple(tensor.shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3, 4)):
        raise UnreadableImage(
            f"tensor of shape {shape}; need (H, W), (1, H, W), (3, H, W) or (4, H, W), channels first; an image with "
            "its channels last is tensor.permute(2, 0, 1), or an array"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.double()  # numpy has no bfloat16
    values: np.ndarray = tensor.numpy()
    return values if values.ndim == 2 else values.transpose(1, 2, 0)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise UnreadableImage(f"array of shape {array.shape}; need (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = np.rint(array / 257.0).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise UnreadableImage(
                f"float array in {array.min()}..{array.max()}; need 0..1, or uint8 in 0..255; not "
                "normalised, which the model's own preprocessing does"
            )
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UnreadableImage(f"array of type {array.dtype}; need uint8, uint16, bool or float in 0..1")
    return Image.fromarray(np.ascontiguousarray(array))
