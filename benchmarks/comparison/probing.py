"""A linear classifier on the features of a pretrained backbone, with the seeds and shares of the trainings."""

from __future__ import annotations

from typing import Any

import numpy as np

from comparison.answers import Answers
from visionzoo.cache import Cache
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.split import limited
from visionzoo.inference.device import resolve_device
from visionzoo.inference.features import source_features
from visionzoo.inference.probe import feature_reader, fit_linear, open_backbone
from visionzoo.inference.stream import Stream
from visionzoo.weights.fingerprint import model_fingerprint


def probe(
    model: str,
    weights: str,
    image_size: int | None,
    path: str,
    val_path: str | None,
    seed: int,
    fraction: float,
    batch_size: int,
    device: str,
    answers: str,
) -> dict[str, Any]:
    """Fit and score one; features are kept, so that other seeds and shares compute only what is new.

    Args:
        model, weights, image_size: the backbone.
        path, val_path: the data, as a training reads them.
        seed: draws the share of the training images.
        fraction: of them.
        batch_size: images at a time.
        device: where the backbone runs.
        answers: the file that the answers go to.
    """
    splits = open_data(path, val_path=val_path)
    assert splits.train is not None
    assert splits.val is not None
    backbone = open_backbone(model, weights, image_size, is_run=False).to(resolve_device(device)).eval()
    stream = Stream(feature_reader(backbone, "pooled"), backbone.preprocess, next(backbone.parameters()).device)
    store = Cache("features", of=model_fingerprint(backbone, preprocess=backbone.preprocess, context=("comparison",)))
    train, test = (
        source_features(stream, store, source, batch_size=batch_size, title=title)
        for source, title in ((limited(splits.train, fraction, seed), "train"), (splits.val, "held out"))
    )
    classifier, strength = fit_linear(train.values, train.labels, seed=seed)
    probabilities = np.zeros((len(test.labels), len(splits.classes)), np.float32)
    probabilities[:, classifier.classes_] = classifier.predict_proba(test.values)
    found = Answers.of(probabilities, test.labels, test.places)
    found.write(answers)
    return {
        "train_images": len(train.labels),
        "images": len(found.label),
        "accuracy": float(found.right.mean()),
        "strength": strength,
    }
