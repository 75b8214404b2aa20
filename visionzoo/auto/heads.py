"""The first stage: features once, then k-NN and linear heads on them.

Legend: N images, D width of the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from visionzoo.auto.features import train_features
from visionzoo.auto.network import Network, fill_head, text_prior
from visionzoo.auto.result import Trial
from visionzoo.auto.session import Session
from visionzoo.inference.features import SourceFeatures
from visionzoo.inference.frozen import (
    Candidate,
    fit_head,
    folds_of,
    joined,
    same_pixels,
    score_linear,
    score_neighbours,
    twin_groups,
)
from visionzoo.inference.linear import Linear, tensors
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.calibration import LEAST, Calibration
from visionzoo.terminal import say, visible_name


@dataclass(frozen=True)
class Heads:
    """What is known after the first stage."""

    features: SourceFeatures  #: of the training images that could be read
    choice: Candidate  #: the linear head that is kept
    prior: Linear | None  #: what it was pulled towards, if that is the names of the classes

    def fitted_on(self, places: np.ndarray, classes: int, least: float = 0.0) -> Linear:
        """The chosen head, its penalty at least ``least``, fitted on the images at ``places`` (N,) alone."""
        rows = np.isin(self.features.places, places)
        values, labels = self.features.values[rows], self.features.labels[rows]
        return fit_head(values, labels, classes, max(least, self.choice.strength), self.prior)

    def right(self, head: Linear, places: np.ndarray) -> float:
        """Share of the images at ``places`` (N,) that a head names right."""
        rows = np.isin(self.features.places, places)
        values, labels = tensors(self.features.values[rows], self.features.labels[rows])
        return float((head.logits(values).argmax(1) == labels).double().mean())


def frozen_stage(session: Session, folder: Path) -> Heads:
    """Score k-NN and linear heads; write the network with the best head into ``folder``, which is a run from then on.

    Raises:
        ValueError: where the images of fewer than two classes can be read.
    """
    begun = session.elapsed
    found = train_features(session.network, session.stream, session.train, session.batch, None)
    for image in found.unreadable:
        say(visible_name(f"left out {image.name}: {image.reason}"))
    classes, width = len(session.classes), found.values.shape[1]
    if len(np.unique(found.labels)) < 2:
        raise ValueError(
            f"{session.request.path}: of the {len(session.train):,} training images those that can be read show one "
            "class; telling apart takes two"
        )
    took, begun = session.elapsed - begun, session.elapsed
    groups = session.photos.copies(session.train, found.places)
    alike = twin_groups(found.values, found.labels)
    groups = joined(groups, same_pixels(session.train, found.places, alike))
    _say_twins(groups)
    folds = folds_of(found.labels, groups, width, classes, session.request.seed)
    candidates = [score_linear(found.values, found.labels, classes, folds)]
    prior = None
    if session.network.clip is not None:
        prior = text_prior(session.network.clip, session.classes, torch.from_numpy(found.values))
        candidates.append(score_linear(found.values, found.labels, classes, folds, prior))
    if folds:
        session.add(_line(score_neighbours(found.values, found.labels, classes, folds), took))
    scoring = (session.elapsed - begun) / len(candidates)
    for candidate in candidates:
        session.add(_line(candidate, scoring))
    # where nothing could be held out, what the texts say is worth more than one image of each class
    choice = max(reversed(candidates), key=lambda c: -1.0 if np.isnan(c.accuracy) else c.accuracy)
    heads = Heads(found, choice, prior if choice.name == "text" else None)
    fill_head(session.network.model, heads.fitted_on(found.places, classes))
    save_network(session.network, session.classes, calibration_of(choice, found.labels), folder)
    return heads


def _line(candidate: Candidate, took: float) -> Trial:
    known = not np.isnan(candidate.accuracy)
    return Trial(
        name=candidate.name,
        setting=candidate.setting,
        accuracy=candidate.accuracy if known else None,
        images=candidate.images,
        minutes=took,
        note="" if known else "one image of each class, none to hold out",
    )


def _say_twins(groups: np.ndarray) -> None:
    sizes = np.bincount(groups)
    if twins := int(sizes[sizes > 1].sum()):
        say(
            f"{twins:,} of {len(groups):,} images are all but the same as another of their class; such groups are held "
            "out as one"
        )
    if (sizes > 0).sum() < 0.2 * len(groups):
        say("warning: most of these images show the same few things, so that the numbers say little of others")


def calibration_of(choice: Candidate, labels: np.ndarray) -> Calibration | None:
    """Of the probabilities that images were given by fits that had not seen them; None for too few.

    Args:
        choice: has those probabilities.
        labels: (N,) class indices.
    """
    if choice.probabilities is None:
        return None
    seen = ~choice.probabilities[:, 0].isnan()
    if int(seen.sum()) < LEAST:
        return None
    logits = choice.probabilities[seen].clamp_min(1e-9).log()
    return Calibration.fit(logits, torch.from_numpy(labels.astype(np.int64))[seen])


def save_network(network: Network, classes: tuple[str, ...], calibration: Calibration | None, folder: Path) -> None:
    """Write the network as it is now, as every run keeps its model."""
    model = network.model
    config = ModelConfig(
        task="classify",
        architecture=model.architecture,
        preprocess=model.preprocess,
        labels=classes,
        calibration=calibration,
    )
    save_bundle(model, config, folder)
