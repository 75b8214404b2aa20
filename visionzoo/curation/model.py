"""The model that looks at the data: any backbone, run or CLIP.

Legend: N images, B batch, D width of the features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from visionzoo.backbones import backbone_info, list_backbones
from visionzoo.cache import Cache
from visionzoo.data.sources.base import Source
from visionzoo.inference.device import resolve_device
from visionzoo.inference.features import SourceFeatures, source_features
from visionzoo.inference.load_clip import load_clip
from visionzoo.inference.named import DEFAULT_BACKBONE, usual_size
from visionzoo.inference.probe import feature_kind, feature_reader, open_backbone
from visionzoo.inference.stream import Stream
from visionzoo.models.bundle import CONFIG_FILE, read_config
from visionzoo.models.clip import Clip
from visionzoo.types import Preprocess
from visionzoo.weights.fingerprint import model_fingerprint
from visionzoo.weights.local import local_source


@dataclass(frozen=True)
class Eye:
    """A frozen model that gives (B, D) features of (B, C, H, W) normalised images."""

    name: str
    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    preprocess: Preprocess
    kind: str  #: of features: ``pooled``, ``mean``, or ``clip``

    def features(self, source: Source, cache: str | Path | None, batch_size: int, title: str) -> SourceFeatures:
        """Of every image of a source, labelled or not, from the cache where they are there."""
        identity = model_fingerprint(self.module, preprocess=self.preprocess, context=("doctor", self.kind))
        stream = Stream(self.forward, self.preprocess, next(self.module.parameters()).device)
        store = Cache("features", cache, of=identity)
        return source_features(stream, store, source, batch_size=batch_size, title=title, unlabelled=True)

    def texts(self, captions: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """(T, D) embeddings of captions, of length 1, by a CLIP."""
        assert isinstance(self.module, Clip)
        found = []
        device = self.module.logit_scale.device
        with torch.inference_mode():
            for start in range(0, len(captions), batch_size):
                ids = self.module.tokenizer(list(captions[start : start + batch_size])).to(device)
                found.append(self.module.encode_text(ids, normalize=True).float().cpu().numpy())
        return np.concatenate(found)

    @property
    def scale(self) -> float:
        """By which a CLIP multiplies cosines before a softmax."""
        assert isinstance(self.module, Clip)
        return float(self.module.logit_scale.detach().exp())

    @property
    def reads_texts(self) -> bool:
        """Whether it is a CLIP."""
        return isinstance(self.module, Clip)


def open_eye(
    model: str | Path | None,
    weights: str | None,
    image_size: int | None,
    device: str | torch.device | None,
) -> Eye:
    """The model that was asked for.

    Args:
        model: a run of any task, a backbone's name, or a CLIP; None for the backbone that ``fit`` takes by default.
        weights: of a name; None for the default backbone's published ones.
        image_size: pixels, for a backbone's name; None for its own, or 224 where that is larger and any size will do.
        device: None for a GPU where there is one.

    Raises:
        FileNotFoundError, ValueError: for a model that is not there, or is not complete.
    """
    where = resolve_device(device)
    if model is None:
        model, weights = DEFAULT_BACKBONE, weights or backbone_info(DEFAULT_BACKBONE).weights
    model = local_source(model)
    is_run = (Path(model) / CONFIG_FILE).is_file()
    is_name = not os.path.isdir(model) and (str(model) in list_backbones() or str(model).startswith("timm/"))
    if is_run and "schema_version" not in (Path(model) / CONFIG_FILE).read_text("utf-8", "replace"):
        is_run = False  # a folder of transformers' or open_clip's
    if is_name or (is_run and read_config(model).task != "clip"):
        size = image_size or (usual_size(str(model)) if is_name else None)
        backbone = open_backbone(model, weights, size, is_run).to(where).eval()
        kind = feature_kind(model, is_run)
        return Eye(str(model), backbone, feature_reader(backbone, kind), backbone.preprocess, kind)
    if image_size is not None:
        raise ValueError(f"{model} has an image size of its own; leave --image-size out")
    clip = load_clip(model, where, weights=weights)[0]
    return Eye(str(model), clip, lambda images: clip.encode_image(images, normalize=True), clip.preprocess, "clip")
