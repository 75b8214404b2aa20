"""What a SAM answers, for many askers at a time: the encoder runs once for each picture.

Legend: P points, (height, width) pixels of the picture.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from visionzoo.data.sources.rle import RLE
from visionzoo.inference.mask_generator import MaskGenerator
from visionzoo.inference.sam_predictor import SamImage, SamPredictor
from visionzoo.models.sam.text_prompts import TextPrompts
from visionzoo.serve.batching import Batcher
from visionzoo.serve.bounds import Bounds, Refused
from visionzoo.serve.pictures import HeldPicture, PictureStore
from visionzoo.serve.prompted import PromptedObject
from visionzoo.serve.services import MakeBatcher


class FoundMask(NamedTuple):
    """One mask."""

    runs: RLE
    score: float  #: predicted IoU

    def to_dict(self) -> dict[str, Any]:
        """JSON types: COCO's run lengths, area, box and the predicted IoU."""
        x0, y0, x1, y1 = self.runs.box
        filled = bool(self.runs.area)
        return {
            "segmentation": self.runs.uncompressed(),
            "area": self.runs.area,
            "bbox": [x0, y0, x1 - x0 + filled, y1 - y0 + filled],
            "predicted_iou": round(self.score, 4),
        }


class SegmentService:
    """A promptable segmenter."""

    def __init__(
        self,
        predictor: SamPredictor,
        texts: TextPrompts | None,
        store: PictureStore,
        bounds: Bounds,
        make: MakeBatcher,
    ) -> None:
        self.predictor, self.texts = predictor, texts
        self._store, self._bounds = store, bounds
        self._encoder = make("segment encoder", predictor.embed_images, batch=4)
        self._decoder = make("segment prompts", self._decode)
        self._everything = threading.Semaphore(1)
        self.encoded = 0  #: pictures that went through the encoder

    @property
    def lines(self) -> tuple[Batcher, ...]:
        """Where its questions wait."""
        return self._encoder, self._decoder

    async def embed(self, held: HeldPicture) -> SamImage:
        """The picture as the decoder reads it, computed once."""

        async def encode(image: Image.Image) -> SamImage:
            self.encoded += 1
            found: SamImage = await self._encoder.ask(image)
            return found

        found: SamImage = await self._store.embedded(held, encode)
        return found

    async def mask(self, held: HeldPicture, asked: PromptedObject) -> FoundMask:
        """The mask of one object, the best of three for a lone click or a name.

        Raises:
            ValueError: for no prompt, one outside the picture, or a name where the model takes none.
        """
        if asked.text and self.texts is None:
            raise ValueError("this model takes no names; click on the object, or draw a box around it")
        asked.check(held.size)
        found: FoundMask = await self._decoder.ask((await self.embed(held), asked))
        return found

    def _decode(self, asked: list[tuple[SamImage, PromptedObject]]) -> list[FoundMask]:
        return [self._one(image, prompt) for image, prompt in asked]

    def _one(self, image: SamImage, asked: PromptedObject) -> FoundMask:
        points = np.array(asked.points) if len(asked.points) else None
        labels = np.array(asked.labels) if len(asked.points) else None
        box = None if asked.box is None else np.array(asked.box)
        text = None
        if asked.text:
            assert self.texts is not None
            text = self.texts.embed([asked.text])[0]
        unclear = (len(asked.points) == 1 and box is None and text is None) or (points is None and box is None)
        masks, scores, _ = self.predictor.predict(
            points,
            labels,
            box,
            multimask_output=unclear and (self.predictor.model.ambiguous or text is not None),
            text=text,
            image=image,
        )
        best = int(scores.argmax())
        return FoundMask(RLE.of(np.ascontiguousarray(masks[best].T)), float(scores[best]))

    async def everything(self, image: Image.Image, **options: Any) -> AsyncIterator[bytes]:
        """Lines of JSON: ``{"done": 3, "of": 16}`` on the way, ``{"masks": [...]}`` or ``{"error": ...}`` at the end.

        Args:
            image: RGB.
            options: of :class:`MaskGenerator`.

        Raises:
            Refused: 429 while another picture is being searched.
        """
        if not self._everything.acquire(blocking=False):
            raise Refused(429, "another picture is being searched for everything; try again in a moment")
        try:
            return self._search(MaskGenerator(self.predictor, **options), image)
        except ValueError:  # of the options
            self._everything.release()
            raise

    def _search(self, generator: MaskGenerator, image: Image.Image) -> AsyncIterator[bytes]:
        """Begins at once, in a thread; what it finds out on the way is what comes back."""
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()
        gone, end = threading.Event(), time.monotonic() + self._bounds.seconds

        def progress(done: int, of: int) -> None:
            if gone.is_set():
                raise InterruptedError
            if time.monotonic() > end:
                raise TimeoutError
            loop.call_soon_threadsafe(lines.put_nowait, {"done": done, "of": of})

        def search() -> dict[str, Any]:
            try:
                found = generator.generate(image, progress=progress)
            except TimeoutError:
                return {"error": f"this took longer than {self._bounds.seconds:g} seconds; try a coarser grid"}
            except (InterruptedError, RuntimeError, MemoryError) as error:
                return {"error": f"the search was broken off: {str(error) or 'out of memory'}"}
            finally:
                self._everything.release()
            found = [mask for mask in found if mask["area"]]  # of a click on nothing
            best = sorted(found, key=lambda mask: -mask["predicted_iou"])[: self._bounds.objects]
            masks = [
                FoundMask(RLE.of(np.ascontiguousarray(m["segmentation"].T)), m["predicted_iou"]).to_dict() for m in best
            ]
            return {"masks": masks, "highest_iou": _finite(generator.highest_iou)}

        task = asyncio.ensure_future(asyncio.to_thread(search))
        task.add_done_callback(lambda done: lines.put_nowait(done.result()))
        return _as_lines(lines, gone)


async def _as_lines(lines: asyncio.Queue[dict[str, Any]], gone: threading.Event) -> AsyncIterator[bytes]:
    """JSON by the line until the last; ``gone`` is set when nobody reads any more."""
    try:
        while True:
            line = await lines.get()
            yield json.dumps(line).encode() + b"\n"
            if "done" not in line:
                return
    finally:
        gone.set()


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
