"""A classifier from a handful of labelled images, in memory.

Legend: N images, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from visionzoo.auto.features import feature_batch, feature_stream, features_at
from visionzoo.auto.network import Network, fill_head, network_of, open_network, text_prior
from visionzoo.backbones.base import Backbone
from visionzoo.data.images import open_image
from visionzoo.inference.classifier import ImageClassifier, Images, describe_unreadable, expand, name_of
from visionzoo.inference.device import resolve_device
from visionzoo.inference.frozen import Candidate, fit_head, folds_of, score_linear
from visionzoo.models.calibration import LEAST, Calibration
from visionzoo.models.clip import Clip


def few_shot(
    images: Images,
    labels: Sequence[str],
    *,
    model: str | os.PathLike[str] | Backbone | Clip | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> ImageClassifier:
    """A classifier of a few images: a linear head on the frozen features of a pretrained network, within seconds.

    Its penalty is chosen by cross-validation where classes have two images or more, and its probabilities are
    calibrated by what that says, from 20 images on. Where the network is a CLIP's, the names of the classes are what
    the head is pulled towards, if that is better on images that were held out.

    Args:
        images: N images, as :meth:`visionzoo.ImageClassifier.predict` takes them.
        labels: the class of each.
        model: a run folder; the name of a backbone (with ``weights``, or its published ones); a folder or hub name of a
            CLIP; or a backbone or CLIP in memory, which is copied. None for a small backbone that is published.
        weights: of a name, as ``create_backbone`` takes them.
        image_size: pixels; None for what suits.
        seed: of the folds.
        device: None for a GPU where there is one, otherwise the CPU.

    Returns:
        a classifier whose labels are the sorted names of the classes.

    Raises:
        ValueError: for other numbers of images and labels, fewer than two classes, or an image that cannot be read.
        FileNotFoundError: for a path or weights that are not there.
    """
    items = expand(images)
    if len(items) != len(labels):
        raise ValueError(f"{len(labels)} labels do not fit {len(items)} images")
    classes = sorted({str(label) for label in labels})
    if len(classes) < 2:
        raise ValueError(f"{len(items)} images of one class ({', '.join(classes)}): telling apart takes two or more")
    place = {name: k for k, name in enumerate(classes)}
    targets = np.array([place[str(label)] for label in labels], np.int64)
    where = resolve_device(device)
    network = _network(model, weights, image_size, len(classes), seed)
    stream = feature_stream(network, where)
    values, _, unreadable = features_at(
        stream, len(items), lambda i: open_image(items[i]), lambda i: name_of(items[i], i), feature_batch(where)
    )
    if unreadable:
        raise ValueError(f"{describe_unreadable(unreadable, len(items))}; leave them out")
    features = values.numpy()
    folds = folds_of(targets, np.arange(len(targets)), features.shape[1], len(classes), seed)
    prior = None if network.clip is None else text_prior(network.clip, classes, values)
    choices: list[Candidate] = [score_linear(features, targets, len(classes), folds)]
    if prior is not None:
        choices.append(score_linear(features, targets, len(classes), folds, prior))
    # without anything held out, what the texts say is worth more than one image of each class
    best = max(reversed(choices), key=lambda c: -1.0 if np.isnan(c.accuracy) else c.accuracy)
    fill_head(
        network.model, fit_head(features, targets, len(classes), best.strength, prior if best.name == "text" else None)
    )
    classifier = ImageClassifier.from_model(network.model, classes, device=where, name=f"{len(items)} images")
    if best.probabilities is not None:
        held = ~best.probabilities[:, 0].isnan()
        if int(held.sum()) >= LEAST:
            logits = best.probabilities[held].clamp_min(1e-9).log()
            classifier.calibration = Calibration.fit(logits, torch.from_numpy(targets)[held])
    return classifier


def _network(
    model: str | os.PathLike[str] | Backbone | Clip | None,
    weights: str | None,
    image_size: int | None,
    classes: int,
    seed: int,
) -> Network:
    if isinstance(model, torch.nn.Module):
        if weights is not None or image_size is not None:
            raise ValueError("a model in memory has weights and an image size of its own; leave the options out")
        return network_of(model, classes)
    name = None if model is None else os.fspath(model)
    if name is not None and weights is None and (Path(name).exists() or name.startswith(("hf-hub:", "timm:"))):
        name, weights = None, name  # which says itself what it holds
    return open_network(name, weights, image_size, classes, 224, seed=seed)
