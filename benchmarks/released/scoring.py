"""One released model on one data set: the answers for every image, and the score.

Legend: N images, B batch, C channels, (H, W) pixels, K outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from timm.models import get_pretrained_cfg

from released.identity import of_weights
from released.labels import CLASSES, Question
from visionzoo.backbones import backbone_info
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.split import limited
from visionzoo.inference.device import resolve_device
from visionzoo.inference.named import weights_of
from visionzoo.inference.stream import Stream
from visionzoo.metrics.calibration import confidence_bins, reliability_gap
from visionzoo.models.bundle import filled, load_bundle, read_config
from visionzoo.models.classifier import create_classifier
from visionzoo.runs.tables import read_table, write_table

TOP = 5
#: What answers are of where nobody says.
NOTHING: Mapping[str, str] = MappingProxyType({})
COLUMNS = {"position": "int64", "sample": "string", "answers": "list<int64>", "confidence": "float"}


@dataclass(frozen=True)
class Released:
    """A model and its weights; ``name=weights`` on the command line."""

    name: str  #: of a backbone, ``timm/`` or not, or a run folder
    weights: str | None  #: None for those that were published with it

    @classmethod
    def parse(cls, text: str) -> Released:
        name, _, weights = text.partition("=")
        return cls(name, weights or None)

    @classmethod
    def parse_all(cls, texts: Sequence[str]) -> list[Released]:
        """
        Raises:
            ValueError: if two have one label, which their answers are kept by.
        """
        found = [cls.parse(text) for text in texts]
        labels = [one.label for one in found]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            same = " and ".join(text for text, label in zip(texts, labels, strict=True) if label == twice)
            raise ValueError(f"models={same} are both called {twice}; give one of the files another name")
        return found

    @property
    def label(self) -> str:
        """How it is called."""
        return self.name if self.weights is None else f"{self.name}={Path(self.weights).name}"

    @property
    def digest(self) -> str:
        """Of its files; what its weights are called where there are none here."""
        return of_weights(self.name, self.weights)

    def build(self, device: str | None, *, check: bool = True, image_size: tuple[int, int] | None = None) -> Any:
        """The classifier, in evaluation mode on the device.

        Args:
            device: None for a GPU where there is one.
            check: whether it must have ImageNet's classes.
            image_size: (H, W) in pixels; None for the size that timm's results tables test it at, or that of the run.

        Raises:
            ValueError: for other weights than a classifier's of 1000 classes.
        """
        if Path(self.name).is_dir():
            model = self._run(image_size)
        else:
            weights = self.weights or backbone_info(self.name).weights
            source = weights_of(self.name, weights)
            # random weights are the same ones every time
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                size = image_size or test_size(self.name, weights)
                model = create_classifier(self.name, CLASSES, weights=source, image_size=size)
        outputs = getattr(model, "num_classes", None)
        if check and outputs != CLASSES:
            raise ValueError(f"{self.name} has {outputs} outputs; ImageNet and its relatives ask for {CLASSES}")
        return model.to(resolve_device(device)).eval()

    def _run(self, image_size: tuple[int, int] | None) -> Any:
        if image_size is None:
            return load_bundle(self.name)[0]
        config = read_config(self.name)
        if config.task != "classify":
            raise ValueError(f"{self.name} is of {config.task}; only classifiers are asked at other sizes")
        at_size = replace(config, preprocess=replace(config.preprocess, image_size=image_size))
        build = partial(create_classifier, **{**config.architecture, "image_size": image_size})
        return filled(build, at_size, Path(self.name))


def test_size(name: str, weights: str | None) -> tuple[int, int] | None:
    """(H, W) that the published weights are tested at, where that is another size than they were trained at."""
    tagged = weights.removeprefix("timm:") if weights and weights.startswith("timm:") else name.removeprefix("timm/")
    cfg = get_pretrained_cfg(tagged, allow_unregistered=True)
    size = None if cfg is None else cfg.test_input_size
    return None if size is None else (int(size[1]), int(size[2]))


def at_most(source: Source, limit: int | None) -> Source:
    """So many images, every class by its share, the same ones each time; None, or more than there are, for all."""
    return source if limit is None or limit >= len(source) else limited(source, limit, seed=0)


def held_out(path: str, limit: int | None) -> Source:
    """The images of ``path`` that are scored, as :func:`at_most` takes them: those held out, or all where none are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"val_fraction=1.0 is not used")  # which is for data without a split
        return at_most(open_data(path, val_fraction=1.0).to_evaluate, limit)


def answer(
    model: Any,
    source: Source,
    asked: Question,
    batch_size: int,
    path: Path,
    of: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write what a model answers for each image, among the outputs that are asked: ``path``, atomically.

    Args:
        model: the classifier, on its device.
        source, asked: the images and what is asked of them.
        batch_size: images at a time.
        path: of the file.
        of: which data and weights these are, see :func:`score`.
    """
    device = next(model.parameters()).device
    columns = torch.from_numpy(asked.asked).to(device)
    stream = Stream(lambda x: model(x).index_select(1, columns), model.preprocess, device)
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for output in stream.run(len(source), source.read, source.sample_id, batch_size):
        if not output.positions:
            continue
        best = output.values.topk(min(TOP, len(asked.asked)), 1)
        rows["position"] += output.positions
        rows["sample"] += [source.sample_id(i) for i in output.positions]
        rows["answers"] += asked.asked[best.indices.numpy()].tolist()
        rows["confidence"] += output.values.softmax(1).amax(1).tolist()
    spec = model.preprocess
    about = {
        "images": len(source),
        "image_size": list(spec.image_size),
        "crop_pct": spec.crop_pct,
        "interpolation": spec.interpolation,
        "params": sum(p.numel() for p in model.parameters()),
        "asked": len(asked.asked),
        "of": dict(of),
    }
    write_table(path, COLUMNS, rows, about)


def score(path: Path, asked: Question, of: Mapping[str, str] = NOTHING) -> dict[str, Any]:
    """The row of results: per cent as in timm's tables, of the images that have a label and could be read.

    Args:
        path: the answers.
        asked: the question that they answer.
        of: which data and weights they must be of.

    Raises:
        ValueError: for answers to something else, or no image with a label.
    """
    rows, about = read_table(path, COLUMNS)
    if other := [name for name in of if about.get("of", {}).get(name) != of[name]]:
        raise ValueError(f"{path} holds answers of other {' and '.join(other)}; delete it, or give another --out")
    counted = [(i, a, c) for i, a, c in zip(rows["position"], rows["answers"], rows["confidence"], strict=True)]
    counted = [(i, a, c) for i, a, c in counted if asked.right[i]]
    if not counted:
        raise ValueError(f"{path} has no image with a label")
    first = np.array([a[0] in asked.right[i] for i, a, _ in counted])
    five = np.array([bool(asked.right[i] & set(a)) for i, a, _ in counted])
    sure = np.array([c for *_, c in counted])
    return {
        "top1": 100 * float(first.mean()),
        "top1_err": 100 - 100 * float(first.mean()),
        "top5": 100 * float(five.mean()),
        "top5_err": 100 - 100 * float(five.mean()),
        "ece": 100 * calibration_of(sure, first),
        "param_count": about["params"] / 1e6,
        "img_size": about["image_size"][0],
        "crop_pct": about["crop_pct"],
        "interpolation": about["interpolation"],
        "classes": about["asked"],
        "images": len(counted),
        "unreadable": about["images"] - len(rows["position"]),
    }


def calibration_of(sure: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error of (N,) highest probabilities, and (N,) bool whether the answers are right."""
    return reliability_gap(confidence_bins(torch.from_numpy(sure), torch.from_numpy(right)))
