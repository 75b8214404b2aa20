"""What the features of a model are worth on another data set, without training it."""

from __future__ import annotations

from typing import Any

from released.subject import Subject
from visionzoo.cache import Cache
from visionzoo.data.sources.base import Splits
from visionzoo.inference.features import source_features
from visionzoo.inference.probe import fit_linear
from visionzoo.inference.stream import Stream
from visionzoo.weights.fingerprint import model_fingerprint


def transfer(subject: Subject, data: Splits) -> dict[str, Any]:
    """Top-1 on held-out images of a linear classifier on what the model's head reads, as ``visionzoo probe`` fits it
    (arXiv 1805.08974 compares networks so).

    Args:
        subject: the model.
        data: with training and held-out images, one label each.
    """
    assert data.train is not None
    assert data.val is not None
    model = subject.model
    stream = Stream(model.embed_images, model.preprocess, next(model.parameters()).device)
    store = Cache("features", of=model_fingerprint(model, preprocess=model.preprocess, context=("transfer",)))
    train, test = (
        source_features(stream, store, source, batch_size=subject.batch_size, title=title)
        for source, title in ((data.train, "train"), (data.val, "held out"))
    )
    classifier, strength = fit_linear(train.values, train.labels, seed=0)
    return {
        "accuracy": float((classifier.predict(test.values) == test.labels).mean()),
        "classes": len(data.classes),
        "train_images": len(train.labels),
        "images": len(test.labels),
        "strength": strength,
    }
