"""Images through a model in batches: decode in threads, while the model works on the batch before.

Legend: B batch, (H, W) pixels of the model's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from visionzoo.data.images import UnreadableImage
from visionzoo.data.transforms import EvalTransform
from visionzoo.inference.progress import track
from visionzoo.models.preprocess import Normalize
from visionzoo.types import Preprocess

#: Decoding releases the interpreter lock, so a few threads keep a model busy; more would only hold more in memory.
_THREADS = 4


class Unreadable(NamedTuple):
    """An image that could not be decoded."""

    position: int  #: where it stood in what was given
    name: str
    reason: str


class Output(NamedTuple):
    """What came of one batch."""

    positions: list[int]  #: of the images that were read, in what was given
    values: Tensor  #: (B, ...) float32 on the CPU, one row for each of them; B may be 0
    unreadable: list[Unreadable]


class Stream:
    """Evaluation geometry, normalisation and a forward pass, as one thing that answers batch by batch.

    Args:
        forward: (B, C, H, W) normalised images -> (B, ...).
        preprocess: how pixels become the input of ``forward``.
        device: where ``forward`` runs.
        raw: whether ``forward`` takes the uint8 pixels themselves.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        preprocess: Preprocess,
        device: torch.device,
        *,
        raw: bool = False,
    ) -> None:
        self.forward = forward
        self.device = device
        self.transform = EvalTransform(preprocess)
        self.normalize: nn.Module = nn.Identity() if raw else Normalize(preprocess).to(device)

    def run(
        self,
        count: int,
        read: Callable[[int], Image.Image],
        name: Callable[[int], str],
        batch_size: int,
        title: str = "images",
    ) -> Iterator[Output]:
        """Send ``count`` images through the model, in order, with a progress bar for people where there are many.

        Args:
            count: number of images.
            read: gives image ``i``, or raises :class:`UnreadableImage`; called in threads.
            name: what image ``i`` is called in messages.
            batch_size: images decoded, and sent, at a time; the results do not depend on it.
            title: of the progress bar.

        Raises:
            ValueError: for a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")

        def decode(i: int) -> Tensor | Unreadable:
            try:
                return self.transform(read(i))
            except UnreadableImage as error:
                return Unreadable(i, name(i), error.reason)

        return track(self._batches(count, decode, batch_size), -(-count // batch_size), title)

    def _batches(self, count: int, decode: Callable[[int], Tensor | Unreadable], batch_size: int) -> Iterator[Output]:
        with ThreadPoolExecutor(_THREADS) as pool:
            ahead: list[Future[Tensor | Unreadable]] = []
            for start in range(0, count, batch_size):
                now = ahead or [pool.submit(decode, i) for i in range(start, min(start + batch_size, count))]
                after = range(start + batch_size, min(start + 2 * batch_size, count))
                ahead = [pool.submit(decode, i) for i in after]  # decoded while the model works on `now`
                decoded = list(enumerate((f.result() for f in now), start))
                good = [(i, d) for i, d in decoded if isinstance(d, Tensor)]
                bad = [d for _, d in decoded if isinstance(d, Unreadable)]
                yield Output([i for i, _ in good], self.answer([d for _, d in good]), bad)

    def answer(self, images: list[Tensor]) -> Tensor:
        """(C, H, W) uint8 pixels as ``transform`` gives them, B of them -> (B, ...) float32 on the CPU."""
        if not images:
            return torch.empty(0)
        with torch.inference_mode():
            pixels = torch.stack(images).to(self.device)
            return self.forward(self.normalize(pixels)).float().cpu()
