"""What a set of models makes of changed images and of other ones; every finding is kept in a file of its own.

Legend: N images, B batch, C channels, (H, W) pixels, K outputs that are asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
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
from released.maps import LOOKED, look_at
from released.scoring import calibration_of
from released.subject import Subject
from released.transfer import transfer
from visionzoo.data.sources.base import Splits
from visionzoo.data.transforms import EvalTransform
from visionzoo.files import write_json
from visionzoo.metrics.differences import error_agreement
from visionzoo.metrics.similarity import linear_cka
from visionzoo.metrics.unfamiliar import energy_score, max_softmax, separation

#: What can be asked for; ``ood`` needs images of none of the classes, ``transfer`` another labelled data set.
LOOKS = (
    "clean", "imagenet_c", "occlusion", "shuffle", "shape_texture", "resolution", "input_size", "pgd", "ood",
    "transfer", "cka", "maps",
)  # fmt: skip
#: ImageNet-C's corruptions are in pixels of 224; much smaller inputs do not show what they do.
LEAST_EDGE = 112
#: Shares of the pixels along an edge that are left of the detail.
SHARPNESS = (1.0, 0.75, 0.5, 0.375, 0.25)
#: Input sizes, as shares of a model's own (arXiv 1906.06423).
SIZES = (0.5, 0.75, 1.0, 1.25, 1.5)


# ---- one model ------------------------------------------------------------------------------------------------------


def clean(subject: Subject) -> dict[str, Any]:
    logits = subject.logits(subject.pixels)
    right = subject.right_of(logits)
    return {
        "accuracy": float(right.mean()),
        "right": [int(r) for r in right],
        "ece": calibration_of(logits.softmax(1).amax(1).numpy(), right),
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


def input_size(subject: Subject) -> dict[str, Any]:
    """Accuracy of the same weights where images enter with more or fewer pixels, in whole patches."""
    height, width = subject.model.preprocess.image_size
    step = subject.model.stride
    found: dict[str, Any] = {"x": [], "accuracy": [], "left_out": []}
    shares = [s for s in SIZES if s != 1]
    sizes = {(max(1, round(s * height / step)) * step, max(1, round(s * width / step)) * step) for s in shares}
    for size in sorted(sizes | {(height, width)}):  # of a small input several shares are one size
        other = replace(subject, image_size=size)
        try:
            accuracy = float(other.right(other.pixels).mean())
        except (ValueError, AssertionError) as error:  # timm asserts what some of its families cannot do
            found["left_out"].append(f"{size[0]} x {size[1]} pixels: {error}")
            continue
        found["x"].append(size[0])
        found["accuracy"].append(accuracy)
    return found


def shape_texture(subject: Subject) -> dict[str, Any]:
    shape = subject.accuracy(lambda p, _: looks.without_texture(p))
    texture = subject.accuracy(lambda p, rng: looks.without_shape(p, rng))
    return {"shape": shape, "texture": texture, "shape_share": shape / (shape + texture) if shape + texture else None}


def pgd(subject: Subject) -> dict[str, Any]:
    """Accuracy under an adversary, who fights the first right answer of each image."""
    columns = torch.from_numpy(subject.question.asked).to(next(subject.model.parameters()).device)
    places = {int(k): i for i, k in enumerate(subject.question.asked)}
    labels = torch.tensor([places[min(r)] for r in subject.question.right], device=columns.device)

    def logits(x: Tensor) -> Tensor:
        to = subject.normalize  # which takes whole pixels alone, since nobody else has others
        return subject.model(255 * x * to.scale + to.shift).float()[:, columns]

    found = []
    for budget in (0.0, *looks.BUDGETS):
        found_right, start = 0, 0
        for batch in subject.batches(subject.pixels):
            part = labels[start : start + len(batch)]
            x = batch.float() / 255
            x = x if budget == 0 else looks.attack(logits, x, part, budget)
            with torch.no_grad():
                right = subject.right_of(logits(x).cpu(), start)
            found_right += int(right.sum())
            start += len(batch)
        found.append(found_right / start)
    return {"x": [255 * b for b in (0.0, *looks.BUDGETS)], "accuracy": found}


def ood(subject: Subject, data: Splits) -> dict[str, Any]:
    other = data.first
    fit = EvalTransform(subject.model.preprocess).fit
    strange = subject.logits([np.array(fit(other.read(i))) for i in range(len(other))])
    known = subject.logits(subject.pixels)
    found: dict[str, Any] = {"images": len(strange)}
    for name, score in (("max_softmax", max_softmax), ("energy", energy_score)):
        area, rate = separation(score(known), score(strange))
        found[name] = {"auroc": area, "fpr95": rate}
    return found


ALONE: dict[str, Callable[[Subject], dict[str, Any]]] = {
    f.__name__: f for f in (clean, occlusion, shuffle, shape_texture, resolution, input_size, pgd)
}
#: Looks at other data than those that are scored, by name.
WITH_OTHERS: dict[str, Callable[..., dict[str, Any]]] = {"ood": ood, "transfer": transfer}


# ---- several --------------------------------------------------------------------------------------------------------


class Study:
    """Every model under every look."""

    def __init__(self, subjects: Sequence[Subject], out: Path, say: Callable[[str], None]) -> None:
        self.subjects, self.out, self.say = subjects, out / "pieces", say

    def run(self, wanted: Sequence[str], others: Mapping[str, Splits]) -> dict[str, dict[str, Any]]:
        """Model -> look -> finding.

        Args:
            wanted: some of :data:`LOOKS`.
            others: look -> its data, for those of :data:`WITH_OTHERS`.

        Raises:
            ValueError: for a model or data that do not fit; what was found before is kept.
        """
        found: dict[str, dict[str, Any]] = {s.released.label: {} for s in self.subjects}
        for subject in self.subjects:
            mine = found[subject.released.label]
            for look in wanted:
                if look in ALONE:
                    mine[look] = self._kept(subject, look, ALONE[look])
                elif look in WITH_OTHERS:
                    mine[look] = self._kept(subject, look, partial(WITH_OTHERS[look], data=others[look]))
                elif look == "maps":
                    mine[look] = self._kept(subject, look, lambda s: look_at(s, self.pictures))
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
        return [_square(self.subjects[0].source.read(i)) for i in range(len(self.subjects[0].source))]

    @cached_property
    def pictures(self) -> list[np.ndarray]:
        """(224, 224, 3) uint8, the same ones for all models: some, from the first image to the last."""
        source = self.subjects[0].source
        places = np.unique(np.linspace(0, len(source) - 1, LOOKED).round().astype(int))
        return [_square(source.read(int(i))) for i in places]


def _square(image: Image.Image) -> np.ndarray:
    """(224, 224, 3) uint8: the resize to 256 of ImageNet-C's authors, bilinear, and the centre crop."""
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = ((n - imagenet_c.EDGE) // 2 for n in image.size)
    return np.array(image.crop((left, top, left + imagenet_c.EDGE, top + imagenet_c.EDGE)))


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
