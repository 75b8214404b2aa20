"""What a frozen backbone has learned: k-nearest neighbours and a linear classifier on its features.

Legend: N images, B batch, C channels, (H, W) pixels, D width of the features, K classes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visionzoo.backbones import create_backbone
from visionzoo.backbones.base import Backbone
from visionzoo.cache import Cache
from visionzoo.data.sources.base import Source, Splits
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.split import limited, stratified_split
from visionzoo.inference.device import resolve_device
from visionzoo.inference.features import source_features
from visionzoo.inference.named import RANDOM, weights_of
from visionzoo.inference.stream import Stream, Unreadable
from visionzoo.models.bundle import CONFIG_FILE, read_config
from visionzoo.models.trunk import load_trunk
from visionzoo.weights.fingerprint import model_fingerprint
from visionzoo.weights.local import local_source

FeatureKind = Literal["auto", "pooled", "mean"]
#: Inverse strengths of the linear classifier's L2 penalty that are tried.
STRENGTHS = tuple(10.0**e for e in range(-4, 3))
#: Share of the training images on which the strength is chosen.
CHOICE_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """Accuracies in [0, 1] of classifiers on frozen features."""

    model: str
    data: str
    features: str  #: ``pooled`` or ``mean``
    width: int  #: D
    classes: int  #: K
    train_images: int
    test_images: int
    knn: float
    neighbours: int
    linear: float
    strength: float  #: sklearn's C, chosen on held-out training images
    cached: bool  #: features were read from the disk
    unreadable: tuple[Unreadable, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "unreadable": [u._asdict() for u in self.unreadable]}

    def to_text(self) -> str:
        """A few lines for a terminal, accuracies in percent."""
        return "\n".join(
            [
                f"{self.model} on {self.data}: {self.width} frozen features ({self.features}"
                f"{', from the cache' if self.cached else ''})",
                f"  k-NN, k = {self.neighbours:<14d} {100 * self.knn:6.2f} %",
                f"  linear, C = {self.strength:<12g} {100 * self.linear:6.2f} %",
                f"  on {self.test_images:,} held-out images of {self.classes} classes, "
                f"from {self.train_images:,} training images",
            ]
        )


def probe(
    model: str | Path,
    path: str,
    *,
    val_path: str | None = None,
    val_fraction: float | None = None,
    train_limit: int | float | None = None,
    seed: int = 0,
    weights: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    features: FeatureKind = "auto",
    neighbours: int = 20,
    batch_size: int = 64,
    cache: str | Path | None = None,
    device: str | torch.device | None = None,
) -> ProbeReport:
    """Score a frozen backbone by a k-NN and a linear classifier on its features.

    Features are computed once and kept on the disk; they are computed again when the weights, the preprocessing or the
    data change. k-NN compares by cosine. The linear classifier is scikit-learn's logistic regression on standardised
    features; its penalty is chosen on a fifth of the training images, then all of them are used.

    Args:
        model: a run folder of any task, or the name of a backbone.
        path: labelled data, as ``--data.path`` takes them.
        val_path, val_fraction, seed: as for ``train.py classify``: which images are held out.
        train_limit: a label budget, as there.
        weights: for a backbone's name: what ``create_backbone`` takes, or ``random``; it must be given.
        image_size: for a backbone's name: pixels; None for its own.
        features: ``pooled``, what a classifier reads; ``mean``, the mean over the grid; ``auto`` takes ``mean`` for
            masked pretraining, which trains no pooling, and ``pooled`` elsewhere.
        neighbours: k.
        batch_size: images sent through the backbone at a time.
        cache: folder for features; None for ``$XDG_CACHE_HOME/visionzoo/features``.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError: for missing data or an unknown run.
        ValueError: for multi-label data, too few images, an option out of range, a backbone without ``weights``, or
            what ``load_trunk`` refuses.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours} must be at least 1")
    splits = open_data(path, val_path=val_path, val_fraction=val_fraction, seed=seed)
    train, test = _pair(splits, path)
    train = limited(train, train_limit, seed)
    model = local_source(model)
    is_run = (Path(model) / CONFIG_FILE).is_file()
    backbone = open_backbone(model, weights, image_size, is_run)
    if features not in ("auto", "pooled", "mean"):
        raise ValueError(f"features={features!r} is unknown; use auto, pooled or mean")
    kind = feature_kind(model, is_run) if features == "auto" else features
    backbone.to(resolve_device(device)).eval()
    identity = model_fingerprint(backbone, preprocess=backbone.preprocess, context=("probe", kind))
    stream = Stream(feature_reader(backbone, kind), backbone.preprocess, next(backbone.parameters()).device)
    store = Cache("features", cache, of=identity)
    parts = [
        source_features(stream, store, source, batch_size=batch_size, title=f"features of {title}")
        for source, title in ((train, "train"), (test, "test"))
    ]
    (x, y), (tx, ty) = ((p.values, p.labels) for p in parts)
    if len(np.unique(y)) < 2 or not len(ty):
        raise ValueError(f"{path} has too few labelled images that can be read: {len(y)} and {len(ty)} held out")
    linear, strength = linear_probe(x, y, tx, ty, seed=seed)
    k = min(neighbours, len(y))
    return ProbeReport(
        model=f"{model}, random weights" if weights == RANDOM else str(model),
        data=path,
        features=kind,
        width=x.shape[1],
        classes=len(splits.classes),
        train_images=len(y),
        test_images=len(ty),
        knn=knn_accuracy(x, y, tx, ty, k),
        neighbours=k,
        linear=linear,
        strength=strength,
        cached=all(p.cached for p in parts),
        unreadable=tuple(u for p in parts for u in p.unreadable),
    )


def knn_accuracy(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, neighbours: int) -> float:
    """Accuracy of :func:`knn_probabilities`.

    Args:
        x, test_x: (N, D) features.
        y, test_y: (N,) class indices.
        neighbours: k, at most the number of training features.
    """
    votes = knn_probabilities(x, y, test_x, neighbours, int(y.max()) + 1)
    return float((votes.argmax(1) == test_y).mean())


def knn_probabilities(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, neighbours: int, classes: int) -> np.ndarray:
    """(M, K) share of each class in a vote among the nearest training features by cosine, weighed by similarity.

    Args:
        x: (N, D) features.
        y: (N,) class indices.
        test_x: (M, D) features.
        neighbours: k, at most N.
        classes: K.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    def weigh(distances: np.ndarray) -> np.ndarray:
        # DINO's temperature (arXiv 2104.14294, section 3): near neighbours decide; on the sphere d^2 = 2 - 2 cos
        return np.exp((1 - distances**2 / 2) / 0.07)

    classifier = KNeighborsClassifier(neighbours, weights=weigh).fit(normalize(x), y)
    votes = np.zeros((len(test_x), classes))
    votes[:, classifier.classes_] = classifier.predict_proba(normalize(test_x))
    return votes


def linear_probe(
    x: np.ndarray,
    y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> tuple[float, float]:
    """(accuracy, C) of :func:`fit_linear` on test features (M, D) and labels (M,)."""
    fitted, strength = fit_linear(x, y, strengths=strengths, seed=seed)
    return float(fitted.score(test_x, test_y)), strength


def fit_linear(
    x: np.ndarray, y: np.ndarray, *, strengths: Sequence[float] = STRENGTHS, seed: int = 0
) -> tuple[Any, float]:
    """(scikit-learn's classifier, C) from features (N, D) and labels (N,): logistic regression, its C chosen on
    held-out training images, fitted again on all of them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(strength: float, rows: np.ndarray) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500)).fit(x[rows], y[rows])

    kept, held = stratified_split(y, CHOICE_SHARE, seed)
    with warnings.catch_warnings():
        # a weak penalty may not have converged; it is then judged by what it reached, as any other
        warnings.simplefilter("ignore", ConvergenceWarning)
        if not len(held) or len(np.unique(y[kept])) < 2:
            best = 1.0
        else:
            # of equal scores the strongest penalty
            best = max(strengths, key=lambda c: (fitted(c, kept).score(x[held], y[held]), -c))
        return fitted(best, np.arange(len(y))), best


def _pair(splits: Splits, path: str) -> tuple[Source, Source]:
    if splits.multi_label:
        raise ValueError(f"{path} has several labels per image; a probe scores data with one label each")
    if splits.train is None or splits.val is None:
        raise ValueError(f"{path} needs training and held-out images; give --data.val_path or --data.val_fraction")
    return splits.train, splits.val


def feature_kind(model: str | Path, is_run: bool) -> str:
    """``mean`` after masked pretraining, which trains no pooling, and ``pooled`` elsewhere."""
    return "mean" if is_run and read_config(model).task in ("mae", "simmim") else "pooled"


def open_backbone(
    model: str | Path, weights: str | None, image_size: int | tuple[int, int] | None, is_run: bool
) -> Backbone:
    """The backbone of a run, or of a name and weights.

    Raises:
        FileNotFoundError, ValueError: as :func:`probe`.
    """
    if is_run:
        if weights is not None or image_size is not None:
            raise ValueError(f"{model} has weights and an image size of its own; leave the options out")
        return load_trunk(model)
    if os.path.isdir(model):
        read_config(model)  # says what is wrong with the folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same ones every time
        return create_backbone(str(model), weights=weights_of(str(model), weights), image_size=image_size)


def feature_reader(backbone: Backbone, kind: str) -> Callable[[Tensor], Tensor]:
    """(B, C, H, W) normalised images -> (B, D), the features of a kind."""

    def forward(images: Tensor) -> Tensor:
        features = backbone(images)
        return features.pooled if kind == "pooled" else features.grid.mean(dim=(2, 3))

    return forward
