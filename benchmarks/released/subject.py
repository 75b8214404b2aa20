"""One released model with its question and the images at its size: what every look at it needs.

Legend: N images, B batch, C channels, (H, W) pixels, K outputs that are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor

from released.labels import Question, question
from released.scoring import Released
from visionzoo.data.sources.base import Source
from visionzoo.data.transforms import EvalTransform
from visionzoo.models.bundle import CONFIG_FILE, read_config
from visionzoo.models.preprocess import Normalize


@dataclass
class Subject:
    """One model, its question, and the images at its size."""

    released: Released
    source: Source
    rule: str
    device: str | None
    batch_size: int
    image_size: tuple[int, int] | None = None  #: (H, W) in place of the model's own

    @cached_property
    def model(self) -> Any:
        return self.released.build(self.device, check=False, image_size=self.image_size)

    @cached_property
    def question(self) -> Question:
        """ImageNet's, or by the names of a run's labels.

        Raises:
            ValueError: for classes of the data that a run does not have.
        """
        folder = Path(self.released.name)
        if not (folder / CONFIG_FILE).is_file():
            return question(self.source, self.rule)
        labels = list(read_config(folder).labels or ())
        if unknown := sorted(set(self.source.classes) - set(labels)):
            raise ValueError(f"{folder} has no label {unknown[0]!r}, which the data have")
        index = [labels.index(name) for name in self.source.classes]
        right = tuple(frozenset({index[t]}) if t >= 0 else frozenset() for t in self.source.targets.tolist())
        return Question(np.arange(len(labels)), right)

    def name_of(self, output: int) -> str:
        """What an output of the model is called."""
        folder = Path(self.released.name)
        if (folder / CONFIG_FILE).is_file():
            return str((read_config(folder).labels or ())[output])
        return ImageNetInfo().index_to_description(output).split(",")[0]

    @cached_property
    def pixels(self) -> list[np.ndarray]:
        """(H, W, 3) uint8 of every image, as the model sees it."""
        fit = EvalTransform(self.model.preprocess).fit
        return [np.array(fit(self.source.read(i))) for i in range(len(self.source))]

    @cached_property
    def normalize(self) -> Normalize:
        return Normalize(self.model.preprocess).to(next(self.model.parameters()).device)

    def resized(self, image: np.ndarray) -> np.ndarray:
        """An image that was cropped already, at the model's size."""
        height, width = self.model.preprocess.image_size
        if image.shape[:2] == (height, width):
            return image
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def batches(self, images: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """(B, C, H, W) uint8 on the device."""
        device = next(self.model.parameters()).device
        for start in range(0, len(images), self.batch_size):
            part = np.stack(images[start : start + self.batch_size])
            yield torch.from_numpy(part).permute(0, 3, 1, 2).contiguous().to(device)

    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """(N, K) of (H, W, 3) uint8 images, among the outputs that are asked."""
        columns = torch.from_numpy(self.question.asked)
        with torch.no_grad():  # not inference_mode: what is made here once is differentiated elsewhere
            return torch.cat([self.model(self.normalize(b)).float().cpu()[:, columns] for b in self.batches(images)])

    def right(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N,) bool, of all images in their order."""
        return self.right_of(self.logits(images))

    def right_of(self, logits: Tensor, start: int = 0) -> np.ndarray:
        """(B,) bool of (B, K) logits of the images from ``start`` on: whether the answer is one of the right ones."""
        answers = self.question.asked[logits.argmax(1).numpy()].tolist()
        return np.array([a in r for a, r in zip(answers, self.question.right[start:], strict=False)])

    def accuracy(self, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> float:
        """Share that is right of changed images; every image has its own draws, the same for every model."""
        changed = [change(p, np.random.default_rng([7, i])) for i, p in enumerate(self.pixels)]
        return float(self.right(changed).mean())
