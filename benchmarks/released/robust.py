"""What a set of models makes of changed images; every finding is kept in a file of its own.

Legend: N images, B batch, C channels, (H, W) pixels, K outputs that are asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import imagenet_c
from comparison.pieces import key_of
from PIL import Image
from torch import Tensor

from released import looks
from released.labels import Question, question
from released.scoring import Released
from visionzoo.data.sources.base import Source
from visionzoo.data.transforms import EvalTransform
from visionzoo.files import write_json
from visionzoo.metrics.calibration import calibration_error
from visionzoo.metrics.differences import error_agreement
from visionzoo.metrics.similarity import linear_cka
from visionzoo.metrics.unfamiliar import energy_score, max_softmax, separation
from visionzoo.models.bundle import CONFIG_FILE, read_config
from visionzoo.models.preprocess import Normalize

#: What can be asked for; ``ood`` needs images of none of the classes.
LOOKS = ("clean", "imagenet_c", "occlusion", "shuffle", "shape_texture", "resolution", "pgd", "ood", "cka")
#: ImageNet-C's corruptions are in pixels of 224; much smaller inputs do not show what they do.
LEAST_EDGE = 112
#: Shares of the pixels along an edge that are left of the detail.
SHARPNESS = (1.0, 0.75, 0.5, 0.375, 0.25)


@dataclass
class Subject:
    """One model, its question, and the images at its size."""

    released: Released
    source: Source
    rule: str
    device: str | None
    batch_size: int

    @cached_property
    def model(self) -> Any:
        return self.released.build(self.device, check=False)

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
        """(N,) bool."""
        answers = self.question.asked[self.logits(images).argmax(1).numpy()]
        return np.array([a in r for a, r in zip(answers.tolist(), self.question.right, strict=True)])

    def accuracy(self, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> float:
        """Share that is right of changed images; every image has its own draws, the same for every model."""
        changed = [change(p, np.random.default_rng([7, i])) for i, p in enumerate(self.pixels)]
        return float(self.right(changed).mean())


# ---- one model ------------------------------------------------------------------------------------------------------


def clean(subject: Subject) -> dict[str, Any]:
    logits = subject.logits(subject.pixels)
    answers = subject.question.asked[logits.argmax(1).numpy()].tolist()
    right = [a in r for a, r in zip(answers, subject.question.right, strict=True)]
    places = {int(k): i for i, k in enumerate(subject.question.asked)}
    labels = torch.tensor([places[min(r)] for r in subject.question.right])
    return {
        "accuracy": float(np.mean(right)),
        "right": [int(r) for r in right],
        "ece": calibration_error(logits.softmax(1), labels),
    }


def occlusion(subject: Subject) -> dict[str, Any]:
    return {
        "x": looks.DROPPED,
        "accuracy": [subject.accuracy(lambda p, rng, s=s: looks.drop_patches(p, s, rng)) for s in looks.DROPPED],
    }


def shuffle(subject: Subject) -> dict[str, Any]:
    return {
        "x": looks.SHUFFLED,
        "accuracy": [subject.accuracy(lambda p, rng, n=n: looks.shuffle_patches(p, n, rng)) for n in looks.SHUFFLED],
    }


def resolution(subject: Subject) -> dict[str, Any]:
    def coarser(pixels: np.ndarray, share: float) -> np.ndarray:
        image = Image.fromarray(pixels)
        small = image.resize(tuple(max(1, round(n * share)) for n in image.size), Image.Resampling.BICUBIC)
        return np.array(small.resize(image.size, Image.Resampling.BICUBIC))

    return {
        "x": SHARPNESS,
        "accuracy": [subject.accuracy(lambda p, _, s=s: coarser(p, s)) for s in SHARPNESS],
    }


def shape_texture(subject: Subject) -> dict[str, Any]:
    shape = subject.accuracy(lambda p, _: looks.without_texture(p))
    texture = subject.accuracy(lambda p, rng: looks.without_shape(p, rng))
    return {"shape": shape, "texture": texture, "shape_share": shape / (shape + texture) if shape + texture else None}


def pgd(subject: Subject) -> dict[str, Any]:
    columns = torch.from_numpy(subject.question.asked).to(next(subject.model.parameters()).device)
    places = {int(k): i for i, k in enumerate(subject.question.asked)}
    labels = torch.tensor([places[min(r)] for r in subject.question.right], device=columns.device)

    def logits(x: Tensor) -> Tensor:
        to = subject.normalize  # which takes whole pixels alone, since nobody else has others
        return subject.model(255 * x * to.scale + to.shift).float()[:, columns]

    found = []
    for budget in (0.0, *looks.BUDGETS):
        kept, start = 0, 0
        for batch in subject.batches(subject.pixels):
            part = labels[start : start + len(batch)]
            x = batch.float() / 255
            x = x if budget == 0 else looks.attack(logits, x, part, budget)
            with torch.no_grad():
                kept += int((logits(x).argmax(1) == part).sum())
            start += len(batch)
        found.append(kept / start)
    return {"x": [255 * b for b in (0.0, *looks.BUDGETS)], "accuracy": found}


def ood(subject: Subject, other: Source) -> dict[str, Any]:
    fit = EvalTransform(subject.model.preprocess).fit
    strange = subject.logits([np.array(fit(other.read(i))) for i in range(len(other))])
    known = subject.logits(subject.pixels)
    found: dict[str, Any] = {"images": len(strange)}
    for name, score in (("max_softmax", max_softmax), ("energy", energy_score)):
        area, rate = separation(score(known), score(strange))
        found[name] = {"auroc": area, "fpr95": rate}
    return found


ALONE: dict[str, Callable[[Subject], dict[str, Any]]] = {
    f.__name__: f for f in (clean, occlusion, shuffle, shape_texture, resolution, pgd)
}


# ---- several --------------------------------------------------------------------------------------------------------


class Study:
    """Every model under every look."""

    def __init__(self, subjects: Sequence[Subject], out: Path, say: Callable[[str], None]) -> None:
        self.subjects, self.out, self.say = subjects, out / "pieces", say

    def run(self, wanted: Sequence[str], other: Source | None) -> dict[str, dict[str, Any]]:
        """Model -> look -> finding.

        Raises:
            ValueError: for a model or data that do not fit; what was found before is kept.
        """
        found: dict[str, dict[str, Any]] = {s.released.label: {} for s in self.subjects}
        for subject in self.subjects:
            for look in (name for name in wanted if name in ALONE or name == "ood"):
                if look == "ood":
                    assert other is not None
                    found[subject.released.label][look] = self._kept(subject, look, lambda s: ood(s, other))
                else:
                    found[subject.released.label][look] = self._kept(subject, look, ALONE[look])
        if "imagenet_c" in wanted:
            self._corrupted(found)
        if "cka" in wanted:
            for one, other_one in combinations(self.subjects, 2):
                key = f"cka {other_one.released.label}"
                found[one.released.label][key] = self._kept(one, key, lambda s, o=other_one: {"cka": _cka(s, o)})
        return found

    def _path(self, subject: Subject, look: str) -> Path:
        return self.out / f"{key_of(subject.released.label, look)}.json"

    def _kept(self, subject: Subject, look: str, find: Callable[[Subject], dict[str, Any]]) -> dict[str, Any]:
        path = self._path(subject, look)
        if not path.is_file():
            self.say(f"{subject.released.label}: {look}")
            write_json(path, find(subject))
        return json.loads(path.read_text())

    def _corrupted(self, found: dict[str, dict[str, Any]]) -> None:
        """Each corrupted image is made once, for all models that have not seen it."""
        names = [n for n in imagenet_c.CORRUPTIONS if n != "frost" or imagenet_c.frost_pictures()]
        for name in names:
            left = [s for s in self.subjects if not self._path(s, f"c {name}").is_file()]
            errors: dict[str, list[float]] = {s.released.label: [] for s in left}
            for severity in imagenet_c.SEVERITIES if left else ():
                self.say(f"{name}, severity {severity}")
                images = [
                    imagenet_c.corrupt(p, name, severity, np.random.default_rng([severity, i]))
                    for i, p in enumerate(self._base)
                ]
                for subject in left:
                    if min(subject.model.preprocess.image_size) < LEAST_EDGE:
                        size = subject.model.preprocess.image_size
                        raise ValueError(
                            f"{subject.released.label} sees {size} pixels; ImageNet-C is "
                            f"defined at {imagenet_c.EDGE}, and smaller than {LEAST_EDGE} shows other things; leave "
                            "imagenet_c out (cnn_vs_vit.py has corruptions for small images)"
                        )
                    right = subject.right([subject.resized(p) for p in images])
                    errors[subject.released.label].append(1 - float(right.mean()))
            for subject in left:
                write_json(self._path(subject, f"c {name}"), {"errors": errors[subject.released.label]})
            for subject in self.subjects:
                kept = json.loads(self._path(subject, f"c {name}").read_text())
                found[subject.released.label].setdefault("imagenet_c", {})[name] = kept["errors"]

    @cached_property
    def _base(self) -> list[np.ndarray]:
        """(224, 224, 3) uint8: the authors' resize to 256, bilinear, and centre crop."""
        source, images = self.subjects[0].source, []
        for i in range(len(source)):
            image = source.read(i)
            scale = 256 / min(image.size)
            image = image.resize(tuple(round(n * scale) for n in image.size), Image.Resampling.BILINEAR)
            left, top = ((n - imagenet_c.EDGE) // 2 for n in image.size)
            images.append(np.array(image.crop((left, top, left + imagenet_c.EDGE, top + imagenet_c.EDGE))))
        return images


def _cka(one: Subject, other: Subject) -> list[list[float]]:
    """Of the levels of two models' pyramids, rows those of the first; maps are averaged over their places."""
    levels = []
    for subject in (one, other):
        with torch.no_grad():  # not inference_mode: what is made here once is differentiated elsewhere
            parts = [subject.model.pyramid(subject.normalize(b)) for b in subject.batches(subject.pixels)]
        levels.append([torch.cat([p[k].mean((2, 3)).cpu() for p in parts]) for k in range(len(parts[0]))])
    return [[linear_cka(a, b) for b in levels[1]] for a in levels[0]]


def agreements(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, float]]:
    """(one, other, Cohen's kappa of being right) of every pair."""
    right = {label: np.array(looks_["clean"]["right"], bool) for label, looks_ in found.items() if "clean" in looks_}
    return [(a, b, error_agreement(right[a], right[b])) for a, b in combinations(right, 2)]
