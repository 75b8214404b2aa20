"""Confident learning against cleanlab, on the same probabilities, and what it finds of labels that were turned."""

from __future__ import annotations

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues as cleanlab_issues
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from cleanlab.rank import get_label_quality_scores
from sklearn.datasets import load_digits

from visionzoo.curation import probabilities
from visionzoo.curation.labels import (
    METHODS,
    Method,
    confident_joint,
    find_label_issues,
    find_multi_label_issues,
    label_quality,
)
from visionzoo.curation.probabilities import out_of_sample, out_of_sample_multi


def _noisy(seed: int, count: int = 400, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) probabilities and (N,) labels of which a tenth are wrong; one class is rare, one has a single image."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.r_[np.full(classes - 2, 5.0), 0.3, 0.01])
    truth = rng.choice(classes, count, p=share)
    truth[:3] = classes - 1, classes - 2, classes - 2
    logits = rng.normal(size=(count, classes)) + 2.5 * np.eye(classes)[truth]
    exps = np.exp(logits)
    labels = np.where(rng.random(count) < 0.1, rng.integers(0, classes, count), truth)
    return exps / exps.sum(1, keepdims=True), labels


@pytest.mark.filterwarnings("ignore:May not flag all label issues")
@pytest.mark.parametrize("seed", range(12))
def test_equal_to_cleanlab(seed: int) -> None:
    p, labels = _noisy(seed)
    assert np.array_equal(confident_joint(p, labels), compute_confident_joint(labels, p))
    for method in METHODS:
        assert np.array_equal(
            find_label_issues(p, labels, method), cleanlab_issues(labels, p, filter_by=method, n_jobs=1)
        )
    for by in ("self_confidence", "normalized_margin"):
        np.testing.assert_allclose(
            label_quality(p, labels, by), get_label_quality_scores(labels, p, method=by), atol=1e-12
        )


@pytest.mark.filterwarnings("ignore:May not flag all label issues")
@pytest.mark.parametrize("method", METHODS)
def test_equal_to_cleanlab_with_several_labels(method: Method) -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((300, 5)) < rng.uniform(0.2, 0.6, 5)
    p = 1 / (1 + np.exp(-(4 * truth - 2 + rng.normal(size=truth.shape))))
    labels = np.where(rng.random(truth.shape) < 0.06, ~truth, truth)
    theirs = find_multilabel_issues_per_class(
        [list(np.flatnonzero(row)) for row in labels], p, filter_by=method, n_jobs=1
    )
    ours = find_multi_label_issues(p, labels, method)
    assert ours.any()
    assert np.array_equal(ours, theirs)


def test_a_class_without_images_is_seen_in_none() -> None:
    p, labels = _noisy(0)
    wider = np.concatenate([p * 0.9, np.full((len(p), 1), 0.1)], 1)
    assert np.array_equal(find_label_issues(wider, labels), cleanlab_issues(labels, wider, n_jobs=1))


def test_what_is_not_probabilities_is_refused() -> None:
    p, labels = _noisy(0)
    with pytest.raises(ValueError, match="finite"):
        find_label_issues(np.where(p > 0.5, np.nan, p), labels)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.6, not 0\.\.9"):
        find_label_issues(p, np.r_[labels[:-1], 9])
    with pytest.raises(ValueError, match=r"\(400, 7\) for 399 labels"):
        find_label_issues(p, labels[:-1])
    with pytest.raises(ValueError, match="method='other' is unknown"):
        find_label_issues(p, labels, "other")  # type: ignore[arg-type]


@pytest.mark.long
def test_turned_labels_of_digits_are_found() -> None:
    """5 % of the labels: of as many as were turned nine in ten are among the first, and recall is above 0.85."""
    digits = load_digits()
    truth, count = digits.target, len(digits.target)
    rng = np.random.default_rng(0)
    turned = np.zeros(count, bool)
    turned[rng.choice(count, round(0.05 * count), replace=False)] = True
    labels = np.where(turned, (truth + rng.integers(1, 10, count)) % 10, truth)
    found = out_of_sample(digits.data.astype(np.float32), labels, 10, np.arange(count))
    assert found is not None
    first = np.argsort(label_quality(found.values, labels))[: turned.sum()]
    assert turned[first].mean() >= 0.90
    issues = find_label_issues(found.values, labels)
    assert issues[turned].mean() >= 0.85
    assert turned[issues].mean() >= 0.85


def test_missing_and_added_labels_are_found() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 8)).astype(np.float32)
    truth = features[:, :3] > 0.3
    turned = rng.random(truth.shape) < 0.04
    labels = np.where(turned, ~truth, truth).astype(np.float32)
    found = out_of_sample_multi(features, labels, np.arange(600))
    issues = find_multi_label_issues(found.values, labels)
    assert issues[turned].mean() >= 0.8
    assert turned[issues].mean() >= 0.6


def test_many_images_are_held_out_in_turns_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What training's stages save by holding out one fifth, the doctor cannot: it judges every image."""
    from visionzoo.inference import frozen

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    features = (np.eye(3)[labels] + 0.1 * rng.normal(size=(60, 3))).astype(np.float32)
    monkeypatch.setattr(frozen, "_MUCH", 10)
    found = out_of_sample(features, labels, 3, np.arange(60))
    assert found is not None
    assert found.accuracy == 1
    monkeypatch.setattr(probabilities, "MOST", 10)
    assert out_of_sample(features, labels, 3, np.arange(60)) is None


def test_no_image_can_be_held_out_of_singles() -> None:
    features = np.eye(3, dtype=np.float32)
    assert out_of_sample(features, np.arange(3), 3, np.arange(3)) is None
