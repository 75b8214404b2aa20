"""Cross-validation: copies stay together, luck does not choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionzoo.data.sources.base import FilesSource
from visionzoo.inference.frozen import (
    USUAL,
    fit_head,
    folds_of,
    joined,
    same_pixels,
    score_linear,
    score_neighbours,
    twin_groups,
)
from visionzoo.inference.linear import PRIOR_ALONE, Linear


def clouds(
    per_class: int, k: int = 3, d: int = 12, seed: int = 0, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(k), per_class)
    centres = np.random.default_rng(99).normal(size=(k, d))
    return (centres[y] + spread * rng.normal(size=(len(y), d))).astype(np.float32), y


def test_each_image_is_held_out_once_and_groups_stay_whole() -> None:
    _, y = clouds(20)
    groups = np.arange(60)
    groups[1] = groups[0]
    groups[41] = groups[40] = groups[42]
    folds = folds_of(y, groups, 12, 3, seed=0)
    assert np.array_equal(np.sort(np.concatenate(folds)), np.arange(60))
    for held in folds:
        kept = np.setdiff1d(np.arange(60), held)
        assert not set(groups[held]) & set(groups[kept])
        assert len(np.unique(y[kept])) == 3


def test_one_image_of_each_class_cannot_be_held_out() -> None:
    x, y = clouds(1)
    assert folds_of(y, np.arange(3), 12, 3, seed=0) == []
    found = score_linear(x, y, 3, [])
    assert np.isnan(found.accuracy)
    assert (found.strength, found.images, found.probabilities) == (USUAL, 0, None)


def test_copies_are_found_and_others_are_not() -> None:
    x, y = clouds(200, d=64)
    rng = np.random.default_rng(1)
    copies = x[:20] + 0.02 * rng.normal(size=(20, 64)).astype(np.float32)
    groups = twin_groups(np.concatenate([x, copies]), np.concatenate([y, y[:20]]))
    assert np.array_equal(groups[600:], groups[:20])
    assert len(np.unique(groups)) == 600
    other_class = twin_groups(np.concatenate([x, copies]), np.concatenate([y, y[:20] + 1]))
    assert len(np.unique(other_class)) == 620


def test_pixels_have_the_last_word(tmp_path: Path) -> None:
    """Features call all of them equal; a picture, its JPEG, a smaller one and another one are two kinds."""
    rng = np.random.default_rng(0)
    kinds = [Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)).resize((64, 64)) for _ in range(2)]
    for name, image, options in (
        ("a.png", kinds[0], {}),
        ("b.jpg", kinds[0], {"quality": 60}),
        ("c.png", kinds[0].resize((48, 48)), {}),
        ("d.png", kinds[1], {}),
    ):
        image.save(tmp_path / name, **options)
    source = FilesSource(str(tmp_path), [b"a.png", b"b.jpg", b"c.png", b"d.png"])
    groups = same_pixels(source, np.arange(4), np.zeros(4, np.int64))
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert np.array_equal(same_pixels(source, np.arange(4), np.arange(4)), np.arange(4))


def test_groups_are_joined_through_each_other() -> None:
    one, other = np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8])
    groups = joined(one, other)
    assert groups[0] == groups[1] == groups[2]
    assert len(np.unique(groups)) == 3


@pytest.mark.long
def test_neighbours_and_heads_name_what_they_have_not_seen() -> None:
    x, y = clouds(30)
    folds = folds_of(y, np.arange(90), 12, 3, seed=0)
    for found in (score_neighbours(x, y, 3, folds), score_linear(x, y, 3, folds)):
        assert found.accuracy > 0.8
        assert found.images == 90
        assert found.probabilities is not None
        assert torch.allclose(found.probabilities.sum(1), torch.ones(90), atol=1e-4)
    noise = np.random.default_rng(0).integers(0, 3, 90)  # labels that say nothing
    assert score_linear(x, noise, 3, folds).accuracy < 0.5


def test_a_fit_that_has_seen_an_image_does_not_score_it() -> None:
    """On random features a 1-NN and a free head know by heart what they have seen."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 200)).astype(np.float32), rng.integers(0, 2, 60)
    folds = folds_of(y, np.arange(60), 200, 2, seed=0)
    for found in (score_neighbours(x, y, 2, folds), score_linear(x, y, 2, folds)):
        assert 0.25 < found.accuracy < 0.75


@pytest.mark.long
def test_the_usual_penalty_stays_where_others_are_only_luckier() -> None:
    """With two images a class, choosing the best of nine strengths costs accuracy on others."""
    test_x, test_y = clouds(300, k=5, d=40, seed=7, spread=1.5)
    gained = []
    for seed in range(8):
        x, y = clouds(2, k=5, d=40, seed=seed, spread=1.5)
        found = score_linear(x, y, 5, folds_of(y, np.arange(10), 40, 5, seed))
        scores = [
            (fit_head(x, y, 5, s).logits(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).mean()
            for s in (found.strength, USUAL)
        ]
        gained.append(scores[0] - scores[1])
    assert np.mean(gained) > -0.02


def test_texts_that_know_the_answer_are_trusted() -> None:
    x, y = clouds(2, d=40)
    centres = np.random.default_rng(99).normal(size=(3, 40)).astype(np.float32)
    weight = torch.from_numpy(centres)
    prior = Linear(weight, -0.5 * weight.square().sum(1))  # the best there is for these clouds
    test_x, test_y = clouds(300, d=40, seed=7, spread=2.0)
    folds = folds_of(y, np.arange(6), 40, 3, seed=0)
    found = score_linear(x, y, 3, folds, prior)
    assert found.name == "text"
    head = fit_head(x, y, 3, found.strength, prior)
    plain = fit_head(x, y, 3, USUAL)
    right = [(h.logits(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).mean() for h in (head, plain)]
    assert right[0] > right[1]
    assert found.strength == PRIOR_ALONE or found.strength > 0
