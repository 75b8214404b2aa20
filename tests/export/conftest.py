"""Exported folders that several tests look at; each is written once."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import LABELS, perturbed
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from visionzoo.export.plans import Wish, make_plan
from visionzoo.export.write import export_plan
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.calibration import Calibration
from visionzoo.models.classifier import create_classifier

# pytest's handlers take every record, and torch's exporter writes thousands that nobody reads
logging.getLogger("torch.__trace").propagate = False


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classify run with a calibration, whose temperature is not 1."""
    folder = tmp_path_factory.mktemp("runs") / "classify-pets"
    torch.manual_seed(0)
    model = perturbed(create_classifier("vit_nano_patch4_32", num_classes=len(LABELS)))
    labels = torch.arange(40) % len(LABELS)
    logits = 2 * nn.functional.one_hot(labels, len(LABELS)) + torch.randn(40, len(LABELS))
    config = ModelConfig(
        task="classify",
        architecture=model.architecture,
        preprocess=model.preprocess,
        labels=LABELS,
        calibration=Calibration.fit(logits.float(), labels),
    )
    save_bundle(model, config, folder)
    return folder


@pytest.fixture(scope="session")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run as ONNX."""
    out = tmp_path_factory.mktemp("exported") / "pets"
    export_plan(make_plan(ImageClassifier.load(run_folder, "cpu"), Wish(), "pets"), out)
    return out


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 real pictures of many sizes and modes: scans of digits beside one another, and parts of photographs."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    whole = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    digits = load_digits().images
    for i in range(200):
        if i % 5 == 0:
            image = Image.fromarray((digits[i] * 15.9).astype(np.uint8))
        else:
            source = whole[i % 2]
            width, height = (int(rng.integers(20, side)) for side in source.size)
            left, top = int(rng.integers(0, source.width - width)), int(rng.integers(0, source.height - height))
            image = source.crop((left, top, left + width, top + height))
        if i % 7 == 1:
            image = image.convert("P")
        if i % 7 == 2:
            image = image.convert("RGBA")
        image.save(folder / f"{i:03d}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    whole[0].save(folder / "turned.jpg", exif=turned)
    return folder
