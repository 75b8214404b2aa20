"""Ask about objects in an image: encode it once, then answer clicks, boxes and masks quickly.

Legend: N prompts (objects asked for), P points, M masks per prompt, C width, (h, w) embedding grid, (H', W') the
resized image, (height, width) the image itself.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzoo.data.images import ImageInput, open_image
from visionzoo.inference.device import as_input, own_precision, resolve_device
from visionzoo.inference.sam_transform import ResizeToModel, fitted_size, resize_coords, resize_picture
from visionzoo.models.bundle import load_bundle
from visionzoo.models.sam.model import Sam, SamContext
from visionzoo.models.sam.prompts import NOT_A_POINT, Prompts
from visionzoo.runs.folder import RunFolder
from visionzoo.weights.local import local_source

#: Working memory of one chunk of prompts in the decoder, in bytes: about 64 prompts of Meta's models.
CHUNK_BYTES = 2**30
#: Copies of the image's cells that the decoder holds for each prompt at its widest.
_COPIES = 4
FORMATS = ("RGB", "BGR")


class SamImage(NamedTuple):
    """An image that was encoded: a value, which any thread may ask about."""

    original_size: tuple[int, int]  #: (height, width)
    input_size: tuple[int, int]  #: (H', W')
    context: SamContext


class _HeldImages(NamedTuple):
    """The images that a predictor holds, swapped whole. ``turn`` tells one setting from the next."""

    images: tuple[SamImage, ...]
    current: int
    turn: int


def prompts_at_once(model: Sam) -> int:
    """How many prompts are decoded together; answers do not depend on it."""
    h, w = model.embedding_size
    return max(1, CHUNK_BYTES // (_COPIES * 4 * h * w * model.decoder_dim))


class SamPredictor:
    """Promptable segmentation with the interface of Meta's ``SamPredictor``.

    An image is set with :meth:`set_image`, then asked about with :meth:`predict`. Several can be held at a time, with
    :meth:`set_images` and :meth:`use_image`. When setting an image fails, no image is set; when a question fails,
    everything is as it was before. The model is put in eval mode; setting an image reads its weights as they are then.

    Threads may share one where each asks by value: ``image = sam.embed_image(picture)``, then ``sam.predict(...,
    image=image)``. The image that is set belongs to all threads, as it does in Meta's: a thread that asks about the
    image it set, after another thread has set one, gets an error and not that thread's masks.
    """

    def __init__(self, sam_model: Sam) -> None:
        """
        Args:
            sam_model: made by ``create_sam``.
        """
        self.model = sam_model.eval()
        self.transform = ResizeToModel(sam_model.image_size)
        self._turns = itertools.count()
        self._own = threading.local()
        self._held = _HeldImages((), 0, next(self._turns))

    def __getstate__(self) -> dict[str, Any]:
        turn = self._held.turn + 1
        return {**vars(self), "_own": None, "_turns": None, "_held": self._held._replace(turn=turn)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _own=threading.local(), _turns=itertools.count(state["_held"].turn + 1))

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None) -> SamPredictor:
        """A predictor with the model in a run folder, any folder with ``model.safetensors`` and ``config.json``, or
        ``embedded``, which comes with the package.

        Raises:
            FileNotFoundError: if there is no such folder, or no exported model in it.
            ValueError: for a model of another task, or a damaged file.
        """
        source = local_source(source, "segment")
        model, config = load_bundle(RunFolder.open(source).path, device=resolve_device(device))
        if not isinstance(model, Sam):
            raise ValueError(f"{source} holds a model of task {config.task!r}, not one for segmentation")
        return cls(model)

    def __repr__(self) -> str:
        now = self._held
        held = "image of {}x{} set".format(*now.images[now.current].original_size) if now.images else "no image set"
        h, w = self.model.image_size
        return f"SamPredictor({self.model.name}; {held}; {h}x{w} pixels; {self.device})"

    # What Meta's programs read.

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def is_image_set(self) -> bool:
        """Whether :meth:`set_image` has been called since the last :meth:`reset_image`."""
        return bool(self._held.images)

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the current image."""
        return self._image().original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(H', W') of the current image."""
        return self._image().input_size

    @property
    def features(self) -> Tensor:
        """(1, C, h, w) embedding of the current image."""
        return self._image().context.embedding

    def get_image_embedding(self) -> Tensor:
        """(1, C, h, w) embedding of the current image.

        Raises:
            RuntimeError: if no image is set.
        """
        return self.features

    # Images.

    def set_image(self, image: ImageInput, image_format: str = "RGB") -> None:
        """Encode an image and make it the current one.

        Args:
            image: (height, width, 3) uint8 in 0..255, or anything else that ``open_image`` takes: a path, bytes, PIL,
                a tensor (3, height, width).
            image_format: ``RGB``, or ``BGR`` for an array as OpenCV reads it.

        Raises:
            ValueError: for an unknown format, an image that cannot be read, or an empty one.
        """
        self.set_images([image], image_format)

    def set_images(self, images: Sequence[ImageInput], image_format: str = "RGB", batch_size: int = 4) -> None:
        """Encode several images, hold them all, and make the first the current one; see :meth:`use_image`.

        Args:
            images: as :meth:`set_image` takes them, of any sizes.
            image_format: of arrays.
            batch_size: images encoded at a time.

        Raises:
            ValueError: as :meth:`set_image`; for no images, or a batch size below 1. No image is set then.
        """
        self.reset_image()
        self._hold(self.embed_images(images, image_format, batch_size))

    def embed_image(self, image: ImageInput, image_format: str = "RGB") -> SamImage:
        """Encode an image, to ask about with ``predict(..., image=...)``; what is set stays as it is.

        Takes and raises what :meth:`set_image` does.
        """
        return self.embed_images([image], image_format)[0]

    def embed_images(
        self, images: Sequence[ImageInput], image_format: str = "RGB", batch_size: int = 4
    ) -> list[SamImage]:
        """:meth:`embed_image` for several; takes and raises what :meth:`set_images` does."""
        if image_format not in FORMATS:
            raise ValueError(f"image_format={image_format!r} must be one of {', '.join(FORMATS)}")
        if not len(images) or batch_size < 1:
            raise ValueError(f"{len(images)} images in batches of {batch_size}: both must be at least 1")
        done: list[SamImage] = []
        for start in range(0, len(images), batch_size):
            pictures = [_picture(image, image_format) for image in images[start : start + batch_size]]
            sizes = [(p.height, p.width) for p in pictures]
            inputs = [fitted_size(size, self.model.image_size) for size in sizes]
            pixels = [self._pixels(p, size) for p, size in zip(pictures, inputs, strict=True)]
            done += self._encode(pixels, sizes)
        return done

    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encode an image that was resized already and make it the current one.

        Args:
            transformed_image: (1, 3, H', W') in 0..255, one side of which is the model's.
            original_image_size: (height, width).

        Raises:
            ValueError: for another shape or size. No image is set then.
        """
        self.reset_image()
        shape, (h, w) = tuple(transformed_image.shape), self.model.image_size
        if len(shape) != 4 or shape[:2] != (1, 3) or not (shape[2] == h or shape[3] == w):
            raise ValueError(
                f"an image of shape {shape} must be (1, 3, H', W'), resized to fit {h}x{w} with one side equal"
            )
        height, width = original_image_size
        self._hold(self._encode([transformed_image[0].to(self.device)], [(int(height), int(width))]))

    def use_image(self, index: int) -> None:
        """Make image ``index`` of those that are held the current one.

        Raises:
            IndexError: if there is none.
        """
        held = self._mine()
        if not 0 <= index < len(held.images):
            raise IndexError(f"there is no image {index}: {len(held.images)} are set")
        self._hold(held.images, index)

    def reset_image(self) -> None:
        """Forget all images."""
        self._hold(())

    def _hold(self, images: Sequence[SamImage], current: int = 0) -> None:
        self._held = held = _HeldImages(tuple(images), current, next(self._turns))
        self._own.turn = held.turn

    def _mine(self) -> _HeldImages:
        """What is held, unless that is another thread's in place of this one's."""
        held = self._held
        if getattr(self._own, "turn", held.turn) != held.turn:
            raise RuntimeError(
                "another thread has set an image since this one did; where threads share a predictor, ask by value: "
                "image = predictor.embed_image(picture), predictor.predict(..., image=image); or set the image again"
            )
        return held

    def _image(self) -> SamImage:
        held = self._mine()
        if not held.images:
            raise RuntimeError("no image is set: call set_image(image) first")
        return held.images[held.current]

    def _pixels(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """(3, H', W') uint8."""
        return torch.from_numpy(resize_picture(picture, size)).permute(2, 0, 1).to(self.device)

    @torch.no_grad()
    def _encode(self, pixels: list[Tensor], original_sizes: list[tuple[int, int]]) -> list[SamImage]:
        with own_precision(self.model):
            images = as_input(torch.stack([self.model.preprocess(x) for x in pixels]), self.model)
            return [
                SamImage(size, (x.shape[1], x.shape[2]), self.model.context(embedding.unsqueeze(0)))
                for embedding, x, size in zip(self.model.encode(images), pixels, original_sizes, strict=True)
            ]

    # Questions.

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        text: np.ndarray | Tensor | None = None,
        image: SamImage | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of one object in the current image, or in ``image``.

        Without any prompt the answer is the model's own guess from the image alone, as in Meta's predictor.

        Args:
            point_coords: (P, 2), (x, y) in pixels of the image.
            point_labels: (P,), 1 for the object, 0 for what is not part of it; -1 is padding.
            box: (4,), x0, y0, x1, y1 in pixels of the image; it may reach beyond the image.
            mask_input: (1, 4 h, 4 w), ``low_res_masks`` of an earlier answer.
            multimask_output: three masks for an ambiguous prompt such as one click, or one mask.
            return_logits: give the masks' logits instead of bool.
            text: (T,), a text embedding, for a model with text prompts.
            image: from :meth:`embed_image` of this predictor, or one of the same model; None for the current one.

        Returns:
            masks (M, height, width), predicted IoU (M,), and low-resolution logits (M, 4 h, 4 w).

        Raises:
            RuntimeError: if no image is set, or another thread has set one since this thread did.
            ValueError: for a point outside the image, unknown labels, swapped corners, a box that misses the image, or
                a mask of another size.
        """
        image = self._image() if image is None else image
        points = labels = boxes = masks = texts = None
        if point_coords is not None:
            coords, kinds = check_points(point_coords, point_labels, image.original_size)
            points = self._tensor(resize_coords(coords, image.original_size, image.input_size))[None]
            labels = torch.as_tensor(kinds, device=self.device)[None]
        elif point_labels is not None:
            raise ValueError("point_labels belong to point_coords, and there are none")
        if box is not None:
            corners = check_box(box, image.original_size).reshape(2, 2)
            boxes = self._tensor(resize_coords(corners, image.original_size, image.input_size)).reshape(1, 4)
        if mask_input is not None:
            masks = self._tensor(mask_input)
            if tuple(masks.shape) != (1, *self.model.mask_size):
                h, w = self.model.mask_size
                raise ValueError(
                    f"mask_input of shape {tuple(masks.shape)} must be (1, {h}, {w}): the low-resolution logits of an "
                    "earlier answer"
                )
            if not torch.isfinite(masks).all():
                raise ValueError("mask_input holds NaN or infinity")
            masks = masks[None]
        if text is not None:
            texts = torch.as_tensor(text, dtype=torch.float32, device=self.device).reshape(1, -1)
        answer = self.predict_torch(
            points, labels, boxes, masks, multimask_output, return_logits=return_logits, text=texts, image=image
        )
        return tuple(_numpy(x[0]) for x in answer)  # type: ignore[return-value]

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        text: Tensor | None = None,
        image: SamImage | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks of N objects in the current image, or in ``image``, in chunks where there are many.

        Args:
            point_coords: (N, P, 2), (x, y) in pixels of the resized image.
            point_labels: (N, P).
            boxes: (N, 4), in pixels of the resized image.
            mask_input: (N, 1, 4 h, 4 w).
            multimask_output: three masks for each object, or one.
            return_logits: give logits instead of bool.
            text: (N, T).
            image: as for :meth:`predict`.

        Returns:
            masks (N, M, height, width), predicted IoU (N, M), and low-resolution logits (N, M, 4 h, 4 w).

        Raises:
            RuntimeError: as :meth:`predict`.
            ValueError: for shapes that do not fit.
        """
        image = self._image() if image is None else image
        prompts = Prompts.of(point_coords, point_labels, boxes, mask_input, text).to(self.device)
        step = prompts_at_once(self.model)
        parts = []
        for start in range(0, max(prompts.number, 1), step):
            some = prompts.select(slice(start, start + step))
            with own_precision(self.model):
                low, scores = self.model.ask(image.context, some, multimask_output)
                masks = self.model.postprocess_masks(low, image.input_size, image.original_size)
            parts.append((masks if return_logits else masks > self.model.mask_threshold, scores, low))
        masks, scores, low = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*parts, strict=True))
        return masks, scores, low

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float32), device=self.device)


def check_points(coords: Any, labels: Any, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Points as (P, 2) float64 and their labels as (P,) int64.

    Args:
        coords: (x, y) in pixels.
        labels: 1, 0 or -1.
        size: (height, width) of the image that they are in, edges included.

    Raises:
        ValueError: naming the first point or label that is wrong.
    """
    if labels is None:
        raise ValueError("point_coords need point_labels: 1 for the object, 0 for what is not part of it")
    points, kinds = np.asarray(coords, dtype=np.float64), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 2 or kinds.shape != points.shape[:1]:
        raise ValueError(
            f"point_coords of shape {points.shape} and point_labels of shape {kinds.shape} must be (P, 2) and (P,)"
        )
    unknown = [k for k in kinds.tolist() if k not in (NOT_A_POINT, 0, 1)]
    if unknown:
        raise ValueError(f"point label {unknown[0]} must be 1 (the object) or 0 (not part of it)")
    height, width = size
    inside = (points >= 0).all(axis=1) & (points <= (width, height)).all(axis=1)  # false for NaN as well
    outside = points[~inside & (kinds != NOT_A_POINT)]
    if len(outside):
        x, y = outside[0]
        raise ValueError(f"the point ({x:g}, {y:g}) lies outside the image of {width}x{height} pixels; points are x, y")
    return points, kinds.astype(np.int64)


def check_box(box: Any, size: tuple[int, int]) -> np.ndarray:
    """A box as (4,) float64.

    Args:
        box: x0, y0, x1, y1 in pixels.
        size: (height, width) of the image.

    Raises:
        ValueError: for another number of values, swapped corners, or a box that misses the image.
    """
    values = np.asarray(box, dtype=np.float64).reshape(-1)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f"box {np.asarray(box).tolist()} must be four finite numbers: x0, y0, x1, y1")
    x0, y0, x1, y1 = values
    shown, (height, width) = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})", size
    if x0 > x1 or y0 > y1:
        raise ValueError(f"the corners of box {shown} are swapped: give x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        raise ValueError(f"box {shown} lies outside the image of {width}x{height} pixels")
    return values


def _numpy(values: Tensor) -> np.ndarray:
    """An array; numpy has no bfloat16, and half precision is no type to calculate in."""
    narrow = values.dtype in (torch.bfloat16, torch.float16)
    return (values.float() if narrow else values).cpu().numpy()


def _picture(image: ImageInput, image_format: str) -> Image.Image:
    if image_format == "BGR" and isinstance(image, np.ndarray) and image.ndim == 3:
        image = image[..., [2, 1, 0, *range(3, image.shape[2])]] if image.shape[2] >= 3 else image
    if image_format == "BGR" and isinstance(image, Tensor) and image.ndim == 3:
        image = image[[2, 1, 0, *range(3, len(image))]] if len(image) >= 3 else image
    return open_image(image)
