"""Calibration against slow written-out forms, closed forms, and the packages that compute the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.metrics.calibration import (
    COLDEST,
    HOTTEST,
    adaptive_scores,
    calibration_error,
    confidence_bins,
    conformal_thresholds,
    fit_temperature,
    label_scores,
    reliability,
    reliability_gap,
    unfamiliarity,
)


def make(n: int = 300, k: int = 7, sharper: float = 2.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are ``sharper`` times what the labels were drawn from: the right temperature is that."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return sharper * logits, labels


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error(bins: int) -> None:
    logits, labels = make()
    probabilities = logits.softmax(1)
    confidence, predicted = (t.tolist() for t in probabilities.max(1))
    slow = 0.0
    for b in range(bins):
        members = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if members:
            accuracy = sum(predicted[i] == int(labels[i]) for i in members) / len(members)
            mean = sum(confidence[i] for i in members) / len(members)
            slow += len(members) / len(labels) * abs(accuracy - mean)
    assert calibration_error(probabilities, labels, bins) == pytest.approx(slow, abs=1e-6)


def test_a_probability_of_one_is_in_the_last_bin() -> None:
    """Half of the images at 1.0 with 90 % right, half at 0.95 all right: one bin, 97.5 % sure and 95 % right."""
    sure = torch.tensor([1.0] * 50 + [0.95] * 50)
    labels = torch.tensor([0] * 45 + [1] * 5 + [0] * 50)
    probabilities = torch.stack([sure, 1 - sure], 1)
    table = reliability(probabilities, labels)
    assert table[-1].tolist() == pytest.approx([100, 0.975, 0.95])
    assert calibration_error(probabilities, labels) == pytest.approx(0.025)
    assert reliability_gap(confidence_bins(sure, probabilities.argmax(1) == labels)) == pytest.approx(0.025)


def test_calibration_error_takes_16_bit_probabilities_of_many_classes() -> None:
    logits, labels = make(k=1000)
    probabilities = logits.softmax(1)
    full = calibration_error(probabilities, labels)
    assert calibration_error(probabilities.bfloat16(), labels) == pytest.approx(full, abs=0.02)


def test_calibration_error_of_no_images_and_of_logits() -> None:
    assert math.isnan(calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))
    logits, labels = make()
    with pytest.raises(ValueError, match="apply softmax"):
        calibration_error(logits, labels)
    with pytest.raises(ValueError, match=r"labels run from 3 to 5; they must be in 0\.\.2"):
        calibration_error(logits[:, :3].softmax(1), labels % 3 + 3)
    with pytest.raises(ValueError, match="same N"):
        calibration_error(logits.softmax(1), labels[:-1])


# ---- temperature


def slow_temperature(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> float:
    """The best of a grid, then of finer and finer ones around it."""
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(12):
        grid = [low + (high - low) * i / 40 for i in range(41)]
        losses = [
            float(F.cross_entropy(logits.double() / math.exp(t), labels, label_smoothing=smoothing)) for t in grid
        ]
        best = losses.index(min(losses))
        low, high = grid[max(0, best - 1)], grid[min(40, best + 1)]
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("sharper", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.01])
def test_temperature_is_the_minimum(sharper: float, smoothing: float) -> None:
    logits, labels = make(sharper=sharper)
    assert fit_temperature(logits, labels, smoothing) == pytest.approx(
        slow_temperature(logits, labels, smoothing), rel=1e-5
    )


def test_temperature_finds_what_was_done_to_the_logits() -> None:
    logits, labels = make(n=40_000, sharper=2.5)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.02)
    assert fit_temperature(logits / 2.5, labels) == pytest.approx(fit_temperature(logits, labels) / 2.5, rel=1e-9)
    assert fit_temperature(logits + 1e4, labels) == pytest.approx(2.5, rel=0.02)  # which softmax does not see


def test_temperature_without_a_mistake_or_a_signal() -> None:
    logits = 10 * F.one_hot(torch.arange(50) % 5, 5).float()
    labels = torch.arange(50) % 5
    assert fit_temperature(logits, labels) == pytest.approx(COLDEST, rel=1e-3)
    kept = fit_temperature(logits, labels, smoothing=1 / 51)
    confidence = float((logits / kept).softmax(1).max(1).values[0])
    assert confidence == pytest.approx(1 - 1 / 51 * 4 / 5, abs=1e-6)  # 50 of 51, and one in five of the last
    assert fit_temperature(logits, (labels + 1) % 5) == pytest.approx(HOTTEST, rel=1e-3)
    assert fit_temperature(1e6 * logits, labels) == pytest.approx(COLDEST, rel=1e-3)
    assert fit_temperature(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)) > 0
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_temperature(logits * math.nan, labels)
    with pytest.raises(ValueError, match="there are none"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


# ---- sets


@pytest.mark.parametrize("u", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_adaptive_scores(u: float, penalty: float) -> None:
    probabilities = make(40)[0].softmax(1)
    scores = adaptive_scores(probabilities, u, penalty, free_ranks=2)
    for row, found in zip(probabilities.double().tolist(), scores.tolist(), strict=True):
        for k, p in enumerate(row):
            before = [q for j, q in enumerate(row) if q > p or (q == p and j < k)]
            assert found[k] == pytest.approx(
                sum(before) + (1 - u) * p + penalty * max(0, len(before) + 1 - 2), abs=1e-12
            )


def test_a_score_for_each_image() -> None:
    probabilities = make(5)[0].softmax(1)
    u = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0])
    for i in range(5):
        row = adaptive_scores(probabilities[i : i + 1], float(u[i]))
        assert torch.allclose(adaptive_scores(probabilities, u)[i : i + 1], row)


def test_the_likeliest_label_is_always_in_a_deterministic_set() -> None:
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]])
    assert adaptive_scores(probabilities, penalty=0.0)[:, [0, 2]].diagonal().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("n", [9, 10, 99, 100])
@pytest.mark.parametrize("level", [0.5, 0.7, 0.9, 0.99])
def test_thresholds_have_the_finite_sample_correction(n: int, level: float) -> None:
    scores = torch.randperm(n, generator=torch.Generator().manual_seed(0)).double()
    place = -(-(n + 1) * round(100 * level) // 100)  # in whole numbers
    slow = sorted(scores.tolist())[place - 1] if place <= n else math.inf
    assert float(conformal_thresholds(scores, [level])) == slow
    assert conformal_thresholds(scores, [0.5, level]).shape == (2,)


def test_thresholds_refuse() -> None:
    with pytest.raises(ValueError, match=r"level 1\.0 must be above 0 and below 1"):
        conformal_thresholds(torch.rand(5), [0.5, 1.0])
    with pytest.raises(ValueError, match="must be finite"):
        conformal_thresholds(torch.tensor([0.1, math.nan]), [0.5])


@pytest.mark.parametrize("randomised", [True, False])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_sets_hold_the_truth_as_often_as_asked(randomised: bool, level: float) -> None:
    """Coverage over 20 splits of a classifier that is right in 7 of 10 images and three times too sure."""
    logits, labels = make(3000, sharper=3.0)
    found = []
    for split in range(20):
        generator = torch.Generator().manual_seed(split)
        order = torch.randperm(3000, generator=generator)
        u: Any = torch.rand(3000, generator=generator) if randomised else torch.ones(3000)
        fitted, tested = order[:1000], order[1000:]
        probabilities = (logits / fit_temperature(logits[fitted], labels[fitted])).softmax(1)
        threshold = conformal_thresholds(label_scores(probabilities[fitted], labels[fitted], u=u[fitted]), [level])
        sets = adaptive_scores(probabilities[tested], u[tested]) <= threshold
        found.append(float(sets.gather(1, labels[tested, None]).float().mean()))
        if not randomised:
            assert sets.any(1).all()
    assert sum(found) / 20 == pytest.approx(level, abs=0.01)


def test_known_images_are_called_unknown_at_the_rate() -> None:
    logits, _ = make(20_000)
    unfamiliar = unfamiliarity(logits.softmax(1))
    threshold = conformal_thresholds(unfamiliar[:5000], [0.95])
    assert float((unfamiliar[5000:] > threshold).float().mean()) == pytest.approx(0.05, abs=0.01)


# ---- the same as others compute


class Given:
    """An estimator whose inputs are the probabilities."""

    def __init__(self, classes: int) -> None:
        self.classes_ = np.arange(classes)

    def fit(self, *_: Any) -> Given:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        return inputs

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return inputs.argmax(1)


@pytest.mark.parametrize("level", [0.7, 0.9])
def test_randomised_sets_are_those_of_mapie(level: float) -> None:
    mapie = pytest.importorskip("mapie.classification", reason="MAPIE is not installed")
    from sklearn.base import BaseEstimator, ClassifierMixin

    estimator = type("Estimator", (Given, ClassifierMixin, BaseEstimator), {"__init__": Given.__init__})
    logits, labels = make(600)
    probabilities = logits.double().softmax(1)
    theirs = mapie.SplitConformalClassifier(
        estimator(7), confidence_level=level, conformity_score="aps", prefit=True, random_state=3
    )
    theirs.conformalize(probabilities[:300].numpy(), labels[:300].numpy())
    options = {"include_last_label": "randomized"}
    _, expected = theirs.predict_set(probabilities[300:].numpy(), conformity_score_params=options)
    u = torch.from_numpy(np.random.RandomState(3).uniform(size=300))
    threshold = conformal_thresholds(label_scores(probabilities[:300], labels[:300], u=u, penalty=0.0), [level])
    sets = adaptive_scores(probabilities[300:], u, penalty=0.0) <= threshold
    assert (sets.numpy() == expected[:, :, 0]).all()


@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_scores_are_those_of_torch_uncertainty(penalty: float) -> None:
    conformal = pytest.importorskip(
        "torch_uncertainty.post_processing.conformal", reason="torch-uncertainty is not installed"
    )
    logits, labels = make(400)
    theirs = conformal.ConformalClsRAPS(
        0.1, torch.nn.Identity(), randomized=False, penalty=penalty, regularization_rank=2, device="cpu"
    )
    probabilities = logits.softmax(1)
    ours = {"u": 0.0, "penalty": penalty, "free_ranks": 2}
    assert torch.allclose(
        adaptive_scores(probabilities, **ours).float(), theirs._calculate_all_labels(probabilities), atol=1e-6
    )
    single = theirs._calculate_single_label(probabilities, labels)
    assert torch.allclose(label_scores(probabilities, labels, **ours).float(), single, atol=1e-6)


def test_temperature_is_that_of_torch_uncertainty() -> None:
    calibration = pytest.importorskip(
        "torch_uncertainty.post_processing.calibration", reason="torch-uncertainty is not installed"
    )
    logits, labels = make(400)
    theirs = calibration.TemperatureScaler(torch.nn.Identity(), lr=0.1, max_iter=200, device="cpu")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(logits, labels), batch_size=400)
    theirs.fit(loader, progress=False)
    assert fit_temperature(logits, labels) == pytest.approx(float(theirs.temperature[0].detach()), rel=1e-3)
