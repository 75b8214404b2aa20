"""A small trained-looking run, and images of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.classifier import Classifier, create_classifier

LABELS = ("cat", "dog", "zebra")


def make_classifier(seed: int = 0) -> Classifier:
    """A nano ViT whose answers differ from image to image: a fresh head is nearly uniform."""
    torch.manual_seed(seed)
    model = create_classifier("vit_nano_patch4_32", num_classes=len(LABELS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model() -> Classifier:
    return make_classifier()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "classify-pets-vit_nano"
    model = make_classifier()
    config = ModelConfig(task="classify", architecture=model.architecture, preprocess=model.preprocess, labels=LABELS)
    save_bundle(model, config, folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of different sizes in nested folders, and one file that is none."""
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for i, name in enumerate(("a.png", "b.jpg", "deep/c.webp", "deep/d.bmp", "e.gif", "f.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + 17 * i, 64 - 5 * i, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("not an image")
    return folder
