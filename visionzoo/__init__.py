"""visionzoo: vision Transformers on PyTorch Lightning.

Importing this package costs little more than importing torch: every name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# albumentations asks the network for a newer version when it is imported; nothing here talks to the network unasked.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"

_HOME = {
    "list_backbones": "visionzoo.backbones",
    "backbone_info": "visionzoo.backbones",
    "create_backbone": "visionzoo.backbones",
    "register_backbone": "visionzoo.backbones",
    "register_builder": "visionzoo.models.bundle",
    "register_loss": "visionzoo.losses.classification",
    "register_reader": "visionzoo.data.sources.open",
    "register_task": "visionzoo.cli.tasks",
    "Backbone": "visionzoo.backbones.base",
    "BackboneSpec": "visionzoo.backbones",
    "EncoderModel": "visionzoo.models.encoder_model",
    "LossPart": "visionzoo.tasks.interface",
    "ModelConfig": "visionzoo.models.bundle",
    "TaskEntry": "visionzoo.cli.tasks",
    "VisionTask": "visionzoo.tasks.base",
    "shared_backbone": "visionzoo.backbones",
    "load_weights": "visionzoo.weights",
    "export_weights": "visionzoo.weights",
    "fit": "visionzoo.auto.fit",
    "few_shot": "visionzoo.auto.few_shot",
    "data_doctor": "visionzoo.curation.doctor",
    "create_classifier": "visionzoo.models.classifier",
    "create_mae": "visionzoo.models.mae",
    "create_clip": "visionzoo.models.clip",
    "create_simmim": "visionzoo.models.simmim",
    "create_sam": "visionzoo.models.sam.build",
    "ImageClassifier": "visionzoo.inference.classifier",
    "ZeroShotClassifier": "visionzoo.inference.zero_shot",
    "ImageSearch": "visionzoo.inference.search",
    "load_exported": "visionzoo.export.predictors",
    "SamPredictor": "visionzoo.inference.sam_predictor",
    "MaskGenerator": "visionzoo.inference.mask_generator",
    "Preprocess": "visionzoo.types",
    "Features": "visionzoo.types",
    "Tokens": "visionzoo.types",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'visionzoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
