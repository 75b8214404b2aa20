"""The promises on real images: coverage, unknowns and calibration error over 20 splits of scikit-learn's digits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from visionzoo.metrics.calibration import calibration_error
from visionzoo.models.calibration import Calibration

SPLITS = 20


@cache
def held_out(noise: float) -> tuple[Tensor, Tensor]:
    """Logits and labels of 1,497 digits under noise, by a classifier that has learned 300 of them by heart."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    images = (images + rng.normal(0, noise, images.shape)) / 16
    order = rng.permutation(len(labels))
    learned, rest = order[:300], order[300:]
    model = LogisticRegression(C=1000, max_iter=2000).fit(images[learned], labels[learned])
    return torch.from_numpy(model.decision_function(images[rest])), torch.from_numpy(labels[rest])


def splits(noise: float) -> list[tuple[Calibration, Tensor, Tensor, Tensor]]:
    """Calibration on half of them; of the others: logits, calibrated probabilities, labels."""
    logits, labels = held_out(noise)
    found = []
    for split in range(SPLITS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(split))
        fitted, tested = order[:750], order[750:]
        calibration = Calibration.fit(logits[fitted], labels[fitted])
        probabilities = (logits[tested] / calibration.temperature).softmax(1)
        found.append((calibration, logits[tested], probabilities, labels[tested]))
    return found


@pytest.mark.parametrize("noise", [0.0, 6.0])
@pytest.mark.parametrize("level", [0.8, 0.9, 0.95, 0.99])
def test_coverage(noise: float, level: float) -> None:
    """Within 2 points of what was asked; above it where the likeliest label alone is right more often (no noise)."""
    coverage, accuracy, sizes = [], [], []
    for calibration, _, probabilities, labels in splits(noise):
        sets = calibration.label_sets(probabilities, level)
        coverage.append(float(sets.gather(1, labels[:, None]).double().mean()))
        accuracy.append(float((probabilities.argmax(1) == labels).double().mean()))
        sizes.append(float(sets.double().sum(1).mean()))
    mean = sum(coverage) / SPLITS
    print(f"noise {noise} level {level}: {mean:.4f} +- {np.std(coverage):.4f}, labels {sum(sizes) / SPLITS:.2f}, "
          f"accuracy {sum(accuracy) / SPLITS:.4f}")  # fmt: skip
    assert level - 0.02 < mean < max(level, sum(accuracy) / SPLITS) + 0.02
    assert min(sizes) >= 1


@pytest.mark.parametrize("noise", [0.0, 6.0])
@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_known_images_called_unknown(noise: float, rate: float) -> None:
    rates = [float(c.unknown(p, rate).double().mean()) for c, _, p, _ in splits(noise)]
    assert sum(rates) / SPLITS == pytest.approx(rate, abs=0.01)


@pytest.mark.long
@pytest.mark.parametrize(("noise", "share"), [(0.0, 0.65), (6.0, 0.5)])
def test_the_calibration_error_of_images_that_it_was_not_fitted_on(noise: float, share: float) -> None:
    """A share of what it was. 747 images are never quite even: with the probabilities for the truth 0.022 are left."""
    raw, mended, said, least = [], [], [], []
    for split, (calibration, logits, probabilities, labels) in enumerate(splits(noise)):
        raw.append(calibration_error(logits.softmax(1), labels))
        mended.append(calibration_error(probabilities, labels))
        said.append(calibration.error[1])
        drawn = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(split))[:, 0]
        least.append(calibration_error(probabilities, drawn))
    before, after, told, floor = (sum(errors) / SPLITS for errors in (raw, mended, said, least))
    print(f"noise {noise}: {before:.4f} -> {after:.4f}, said {told:.4f}, of the truth {floor:.4f}")
    assert floor < after < share * before
    assert told == pytest.approx(after, abs=0.01)  # what a calibration says of itself is what others then see
