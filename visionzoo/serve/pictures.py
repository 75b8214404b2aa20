"""Pictures that were sent or opened: decoded within bounds, and kept by what is in them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from visionzoo.data.images import UnreadableImage, image_extensions, open_image
from visionzoo.serve.bounds import Bounds, Refused

#: The longer side of what a browser is shown, in pixels; masks are of the picture itself.
VIEW = 2048

#: Pixels of a picture that are kept until they are first asked for.
SMALL = 4_000_000
#: What is no larger than this, in bytes and in pixels, is decoded sooner than a thread could be asked to.
_TINY_BYTES, _TINY_PIXELS = 8192, 64 * 64


@dataclass
class HeldPicture:
    """One picture."""

    key: str
    data: bytes  #: as it was sent
    size: tuple[int, int]  #: (height, width) of the upright picture
    decoded: Image.Image | None = field(default=None, repr=False)  #: for the first who wants it
    embedded: asyncio.Task[Any] | None = field(default=None, repr=False)  #: what the segmenter made of it

    async def image(self) -> Image.Image:
        """Decoded, upright, RGB. Pixels are not kept, but of tiny ones: they are many times larger than the file."""
        if self.decoded is not None:
            first = self.decoded
            self.decoded = first if is_tiny(first) else None
            return first
        return await asyncio.to_thread(open_image, self.data)


def is_tiny(image: Image.Image) -> bool:
    """Whether work on an image takes less time than handing it to a thread."""
    return image.width * image.height <= _TINY_PIXELS


def decode(data: bytes, bounds: Bounds) -> Image.Image:
    """Upright RGB. Its size is looked at before it is decoded.

    Raises:
        Refused: 413 for too many pixels, 400 for what is no picture.
    """
    if (pixels := _pixels(data)) > bounds.pixels:
        count = "far too many" if pixels == sys.maxsize else f"{pixels:,}"
        raise Refused(413, f"the picture has {count} pixels; at most {bounds.pixels:,} are taken. Make it smaller")
    return _read(data)


def _read(data: bytes) -> Image.Image:
    try:
        return open_image(data)
    except UnreadableImage as error:
        raise Refused(400, f"this is no picture that can be read: {error.reason}") from None


def _pixels(data: bytes) -> int:
    """By the head of a file; 0 where that cannot be read, and ``open_image`` will say why."""
    image_extensions()  # lets PIL read HEIC where that is installed
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return opened.width * opened.height
    except Image.DecompressionBombError:
        return sys.maxsize  # many more than PIL's own limit
    except (OSError, SyntaxError, ValueError):
        return 0


def as_view(image: Image.Image, longest: int = VIEW) -> bytes:
    """A JPEG of at most so many pixels along the longer side: every browser shows it, whatever was sent."""
    image = image.copy()
    image.thumbnail((longest, longest))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


class PictureStore:
    """The pictures that were asked about last, by the hash of their bytes. Used in one thread, that of the server."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._held: OrderedDict[str, HeldPicture] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    async def add(self, data: bytes) -> HeldPicture:
        """Keep a picture; one that is there already comes back.

        Raises:
            Refused: as :func:`decode`.
        """
        key = hashlib.sha256(data).hexdigest()[:32]
        if key not in self._held:
            tiny = len(data) <= _TINY_BYTES and 0 < _pixels(data) <= min(_TINY_PIXELS, self.bounds.pixels)
            image = _read(data) if tiny else await asyncio.to_thread(decode, data, self.bounds)
            small = image if image.width * image.height <= SMALL else None
            self._held[key] = HeldPicture(key, data, (image.height, image.width), small)
            while len(self._held) > self.bounds.pictures:
                self._held.popitem(last=False)
        return self.get(key)

    def get(self, key: str) -> HeldPicture:
        """Raises Refused (404) for one that is not kept, or not any more."""
        if key not in self._held:
            raise Refused(404, "this picture is not kept any more; send it again")
        self._held.move_to_end(key)
        return self._held[key]

    async def embedded(self, held: HeldPicture, encode: Callable[[Image.Image], Awaitable[Any]]) -> Any:
        """What ``encode`` makes of a picture, once for each: who asks meanwhile waits for the same."""

        async def run() -> Any:
            return await encode(await held.image())

        if held.embedded is None or (held.embedded.done() and (held.embedded.cancelled() or held.embedded.exception())):
            held.embedded = asyncio.ensure_future(run())
        return await asyncio.shield(held.embedded)

    def forget_embeddings(self) -> None:
        """Another model has come."""
        for held in self._held.values():
            held.embedded = None
