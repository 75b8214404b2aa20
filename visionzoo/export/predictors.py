"""Exported folders as the predictors that they were made of, run by ONNX Runtime.

Legend: B batch, C channels, (H, W) pixels, N images, K labels, D width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionzoo.data.images import UnreadableImage, open_image
from visionzoo.data.transforms import EvalTransform
from visionzoo.export.failure import need_export_extra
from visionzoo.export.folder import read_spec
from visionzoo.export.sam_predictor import ExportedSam, ExportedSamPredictor
from visionzoo.export.to_onnx import OnnxRunner
from visionzoo.inference.answers import Scorer
from visionzoo.inference.classifier import ImageLabeller, Images, expand, name_of
from visionzoo.models.calibration import Calibration
from visionzoo.types import Preprocess


class ExportedClassifier(ImageLabeller):
    """An exported classifier, with the methods of :class:`visionzoo.ImageClassifier`. Made by :func:`load_exported`."""

    how_to_calibrate = "calibrate the run and export it anew, or call calibrate(images, labels)"
    takes_pixels = True
    _features_name = "features"

    def __init__(self, spec: dict[str, Any], runner: OnnxRunner) -> None:
        self.preprocess = Preprocess.from_dict(spec["preprocess"])
        self.labels = tuple(spec["labels"])
        self.name = spec["name"]
        self.device = torch.device("cpu")
        self.multi_label = bool(spec["multi_label"])
        found = spec.get("calibration")
        self.calibration = None if found is None else Calibration.from_dict(found)
        self.unknown = spec.get("unknown")
        self.unknown_label = spec.get("unknown_label", "unknown")
        self._backbone, self._runner = str(spec["backbone"]), runner
        outputs = {port["name"]: port["shape"] for port in spec["graphs"]["model"]["outputs"]}
        self._width = int(outputs[self._features_name][1])

    def use_calibration(self, calibration: Calibration, labels: tuple[str, ...]) -> Calibration:
        if labels != self.labels:
            raise ValueError("labels were removed while their probabilities were calibrated; do it again")
        self.calibration = calibration
        return calibration

    @property
    def width(self) -> int:
        """D, the width of :meth:`embed`."""
        return self._width

    def _scorer(self) -> Scorer:
        return Scorer(self.name, self.labels, self._logits, self.multi_label, self.calibration)

    def _logits(self, images: Tensor) -> Tensor:
        return self._output("logits", images)

    def _features(self, images: Tensor) -> Tensor:
        return self._output(self._features_name, images)

    def _output(self, name: str, images: Tensor) -> Tensor:
        return torch.from_numpy(self._runner(images.numpy(), outputs=[name])[0])

    def _about(self) -> list[str]:
        return [self._backbone, "exported", *(["each label by itself"] if self.multi_label else [])]


class ExportedZeroShot(ExportedClassifier):
    """An exported zero-shot classifier, with the methods of :class:`visionzoo.ZeroShotClassifier`.

    Its labels are in the graph: they can be removed, and none can be added.
    """

    how_to_calibrate = "call calibrate(images, labels) on labelled images first"
    _features_name = "embeddings"

    def __init__(self, spec: dict[str, Any], runner: OnnxRunner) -> None:
        super().__init__(spec, runner)
        self.templates_name = str(spec["templates"])
        self._kept = list(range(len(self.labels)))

    def _logits(self, images: Tensor) -> Tensor:
        return super()._logits(images)[:, self._kept]

    def add(self, labels: str | Sequence[str]) -> None:
        """Raises ValueError: the text tower is not in the folder."""
        raise ValueError(f"{self.name} was exported with its labels and cannot read {labels!r:.80}; export it anew")

    def remove(self, labels: str | Sequence[str]) -> None:
        """Remove labels, and the calibration, which was fitted with them.

        Raises:
            ValueError: for a label that is not there, or if none would be left.
        """
        gone = [labels] if isinstance(labels, str) else list(labels)
        if unknown := [label for label in gone if label not in self.labels]:
            raise ValueError(f"there is no label {unknown[0]!r}; there are {', '.join(self.labels)[:200]}")
        kept = [k for k, label in zip(self._kept, self.labels, strict=True) if label not in gone]
        if not kept:
            raise ValueError(f"removing {', '.join(gone)} leaves no label")
        names = dict(zip(self._kept, self.labels, strict=True))
        self._kept, self.labels, self.calibration = kept, tuple(names[k] for k in kept), None


class ExportedFeatures:
    """An exported backbone or image tower: pictures to arrays. Made by :func:`load_exported`."""

    def __init__(self, spec: dict[str, Any], runner: OnnxRunner) -> None:
        self.preprocess = Preprocess.from_dict(spec["preprocess"])
        self.name = str(spec["name"])
        self._transform, self._runner = EvalTransform(self.preprocess), runner

    def __call__(self, images: Images, batch_size: int = 32) -> dict[str, np.ndarray]:
        """Every output of the graph, by its name: (N, ...) float32, one row for each image, at the model's own size.

        Raises:
            FileNotFoundError: for a path that does not exist.
            ValueError: naming an image that cannot be read, and why.
        """
        items = expand(images)
        found: list[list[np.ndarray]] = []
        for start in range(0, len(items), max(1, batch_size)):
            pixels = [self._pixels(items[i], i) for i in range(start, min(start + batch_size, len(items)))]
            found.append(self._runner(np.stack(pixels)))
        joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        return dict(zip(self._runner.outputs, joined, strict=True))

    def _pixels(self, item: Any, index: int) -> np.ndarray:
        try:
            return self._transform(open_image(item)).numpy()
        except UnreadableImage as error:
            raise ValueError(f"{name_of(item, index)} cannot be read: {error.reason}") from None

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Pixels (B, C, H, W) uint8, of any size that the graph takes, to every output by its name."""
        return dict(zip(self._runner.outputs, self._runner(pixels), strict=True))


class ExportedTowers(ExportedFeatures):
    """An exported CLIP: pictures and token ids to embeddings of length one. Made by :func:`load_exported`."""

    def __init__(self, spec: dict[str, Any], image: OnnxRunner, text: OnnxRunner) -> None:
        super().__init__(spec, image)
        self.logit_scale, self.logit_bias = float(spec["logit_scale"]), float(spec.get("logit_bias", 0.0))
        self._text = text

    def encode_text(self, tokens: np.ndarray) -> np.ndarray:
        """(B, L) int64, as the model's tokenizer gives them -> (B, D) float32."""
        return self._text(np.asarray(tokens, dtype=np.int64))[0]


def load_exported(folder: str | Path, *, threads: int = 0) -> Any:
    """What runs an exported folder, with the methods of the predictor that it was made of.

    Args:
        folder: that ``visionzoo export`` wrote.
        threads: of the CPU; 0 for the runtime's own choice.

    Returns:
        an :class:`ExportedClassifier`, :class:`ExportedZeroShot`, :class:`ExportedSamPredictor`,
        :class:`ExportedTowers` or :class:`ExportedFeatures`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a folder that was changed afterwards, one of another version, or a missing extra.
    """
    spec = read_spec(folder)
    first_graph(folder, spec)
    need_export_extra(("onnxruntime",))
    graphs = {name: OnnxRunner(os.path.join(folder, file), threads) for name, file in spec["files"].items()}
    if spec["kind"] == "sam":
        return ExportedSamPredictor(ExportedSam(spec, graphs["encoder"], graphs["decoder"]))
    if spec["kind"] == "clip":
        return ExportedTowers(spec, graphs["image"], graphs["text"])
    kinds = {"classifier": ExportedClassifier, "zero-shot": ExportedZeroShot}
    return kinds.get(spec["kind"], ExportedFeatures)(spec, graphs["model"])


def first_graph(folder: str | Path, spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The file of the graph that reads pictures, and its first input as ``preprocess.json`` describes it.

    Raises:
        ValueError: for files that ONNX Runtime does not run.
    """
    if spec.get("to") != "onnx":
        raise ValueError(
            f"{folder} holds files for torch itself, which may unpickle them or run machine code in them: where you "
            "trust them, torch.export.load or torch._inductor.aoti_load_package opens "
            f"{', '.join(spec['files'].values())}"
        )
    name = next(name for name in ("model", "image", "encoder") if name in spec["files"])
    return os.path.join(folder, spec["files"][name]), spec["graphs"][name]["inputs"][0]
