"""What predictors say of themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import visionzoo as vz

NANO = "vit_nano_patch4_32"


def test_predictors_say_model_labels_size_and_device(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = vz.ImageClassifier.from_model(vz.create_classifier(NANO, 7), [f"c{i}" for i in range(7)], name="run")
    said = repr(classifier)
    assert said == f"ImageClassifier(run; 7 labels: c0, c1, c2, c3, c4, ...; {NANO}; 32x32 pixels; cpu)"
    clip = vz.create_clip(backbone=NANO, text="nano")
    zero_shot = vz.ZeroShotClassifier(clip, ["a cat", "a dog"], "imagenet", name="clip", multi_label=True)
    assert repr(zero_shot) == (
        "ZeroShotClassifier(clip; 2 labels: a cat, a dog; templates: imagenet; each label by itself; 32x32 pixels; cpu)"
    )
    search = vz.ImageSearch(clip, cache_dir=tmp_path / "cache")
    assert repr(search) == f"ImageSearch(CLIP of {NANO}; nothing indexed; 32x32 pixels; cpu)"
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    assert f"1 images of {tmp_path / 'photos'}" in repr(search.index(tmp_path / "photos"))
    sam = vz.create_sam(NANO, image_size=64, decoder_dim=16, ambiguous=False)
    predictor = vz.SamPredictor(sam)
    assert repr(predictor) == f"SamPredictor(SAM of {NANO}; no image set; 64x64 pixels; cpu)"
    predictor.set_image(np.zeros((20, 30, 3), np.uint8))
    assert "image of 20x30 set" in repr(predictor)
    generator = vz.MaskGenerator(sam, points_per_side=4)
    assert repr(generator) == f"MaskGenerator(SAM of {NANO}; 16 points, 1 mask each; 64x64 pixels; cpu)"
