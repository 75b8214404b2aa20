"""Comparisons of classifiers: they find what is there, and seldom what is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from visionzoo.metrics.differences import (
    POWER,
    Ranking,
    friedman_nemenyi,
    holm,
    least_shown,
    mcnemar,
    paired_difference,
)

IMAGES = 1000


def trainings(rng: np.random.Generator, seeds: int, difficulty: np.ndarray, gain: float = 0.0) -> np.ndarray:
    """(S, N): a network under several seeds. Each is a little better or worse, and answers in its own way."""
    level = gain + 0.06 * rng.normal(size=(seeds, 1))  # on the logit's scale: one point of accuracy, as trainings have
    return rng.random((seeds, len(difficulty))) < 1 / (1 + np.exp(-(difficulty + level)))


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_same_network_under_other_seeds_is_no_difference(seeds: int) -> None:
    rng = np.random.default_rng(1)
    different = 0
    for _ in range(100):
        difficulty = rng.normal(1.0, 2.0, IMAGES)
        one, other = (trainings(rng, seeds, difficulty) for _ in range(2))
        different += paired_difference(one, other, resamples=400).p < 0.05
    assert different <= 5


def test_two_networks_that_are_equally_good_are_no_difference() -> None:
    rng = np.random.default_rng(2)
    different = 0
    for _ in range(100):
        chance = 1 / (1 + np.exp(-rng.normal(1.0, 2.0, IMAGES)))
        one, other = rng.random((2, IMAGES)) < chance
        different += paired_difference(one, other, resamples=100).p < 0.05
    assert different <= 5


def test_five_equal_networks_give_no_false_finding_in_95_of_100_pages() -> None:
    rng = np.random.default_rng(3)
    pages = 0
    for _ in range(100):
        difficulty = rng.normal(1.0, 2.0, 300)
        five = [trainings(rng, 3, difficulty) for _ in range(5)]
        pairs = [(i, j) for i in range(5) for j in range(i)]
        pages += min(holm([paired_difference(five[i], five[j], resamples=100).p for i, j in pairs])) < 0.05
    assert pages <= 5


def test_a_difference_as_large_as_is_called_resolvable_is_found_as_often() -> None:
    rng = np.random.default_rng(4)
    found, resolvable, values = 0, [], []
    for _ in range(100):
        difficulty = rng.normal(1.0, 2.0, IMAGES)
        seen = paired_difference(trainings(rng, 3, difficulty, 0.42), trainings(rng, 3, difficulty), resamples=300)
        found += seen.p < 0.05
        resolvable.append(seen.resolvable)
        values.append(seen.value)
    # the gain was chosen so that it is about what can be resolved
    assert np.mean(values) == pytest.approx(np.mean(resolvable), rel=0.2)
    assert found / 100 == pytest.approx(POWER, abs=0.12)


def test_the_error_is_that_of_the_difference_of_paired_shares() -> None:
    rng = np.random.default_rng(5)
    one, other = rng.random((2, IMAGES)) < np.array([[0.8], [0.7]])
    seen = paired_difference(one, other)
    each = one.astype(float) - other
    error = each.std(ddof=1) / IMAGES**0.5
    assert seen.value == pytest.approx(each.mean())
    assert (seen.high - seen.low) / 2 == pytest.approx(1.961 * error, rel=0.05)
    assert seen.seeds == (1, 1)


@pytest.mark.parametrize("seeds", [1, 2, 3, 7])
def test_where_nothing_varies_the_small_number_of_images_still_counts(seeds: int) -> None:
    right, wrong = np.ones((seeds, 5), bool), np.zeros((seeds, 5), bool)
    seen = paired_difference(right, wrong)
    exact = binomtest(5, 5)
    share = exact.proportion_ci(0.95, "exact")
    assert (seen.value, seen.p) == (1.0, pytest.approx(0.0625))
    assert (seen.low, seen.high) == (pytest.approx(2 * share.low - 1), 1.0)
    assert seen.p == pytest.approx(exact.pvalue)
    back = paired_difference(wrong, right)
    assert (back.value, back.low, back.high, back.p) == (-1.0, -1.0, pytest.approx(-seen.low), seen.p)
    assert seen.resolvable > 1  # no difference of 5 images is below 0.05
    same = paired_difference(right, right)
    none = binomtest(0, 5).proportion_ci(0.95, "exact")
    assert (same.value, same.p, same.low, same.high) == (0.0, 1.0, pytest.approx(-none.high), pytest.approx(none.high))


def test_what_would_be_shown_is_no_less_than_mcnemars_test_can_show() -> None:
    for level in (0.9, 0.95, 0.99):
        count = round(100 * least_shown(100, level))
        assert binomtest(count, count).pvalue < 1 - level <= binomtest(count - 1, count - 1).pvalue
    near = np.ones(100, bool)
    other = near.copy()
    other[0] = False
    assert paired_difference(near, other).resolvable == 0.06


def test_holm_is_its_definition() -> None:
    # Holm 1979: the smallest of M is held against alpha / M, the next against alpha / (M - 1), until one does not stand
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_mcnemar_is_scipys_binomial_of_the_images_on_which_they_differ() -> None:
    one = np.array([1, 1, 1, 1, 1, 0, 0], bool)
    other = np.array([1, 0, 0, 0, 0, 0, 1], bool)
    assert mcnemar(one, other) == pytest.approx(2 * (1 + 5) / 2**5)  # 4 against 1
    assert mcnemar(one, one) == 1.0


def test_critical_differences_are_those_of_the_paper() -> None:
    # Demšar 2006, table 5(a), and its example of 4 classifiers on 14 sets: 2.569 * sqrt(4 * 5 / (6 * 14)) = 1.25
    rng = np.random.default_rng(0)
    example = friedman_nemenyi(rng.random((14, 4)))
    assert example.critical == pytest.approx(1.2536, abs=2e-3)
    for k, q in ((3, 2.343), (5, 2.728), (10, 3.164)):
        assert friedman_nemenyi(rng.random((6, k))).critical == pytest.approx(q * (k * (k + 1) / 36) ** 0.5, abs=3e-3)
    clear = friedman_nemenyi(np.arange(4) + 0.1 * rng.random((20, 4)))
    assert clear.ranks == (4.0, 3.0, 2.0, 1.0)
    assert clear.p < 1e-6
    assert friedman_nemenyi(np.ones((3, 3))).p == 1.0


def test_without_friedmans_word_no_two_are_told_apart() -> None:
    # Demšar 2006, section 3.2.2: the post-hoc test follows where the null hypothesis is rejected
    assert Ranking((1.0, 1.8, 4.9), 0.06, 1.0, 9).groups() == [(0, 1, 2)]


def test_groups_are_the_largest_sets_that_do_not_differ() -> None:
    assert Ranking((1.0, 1.8, 2.6, 4.9), 0.0, 1.0, 9).groups() == [(0, 1), (1, 2)]
    assert Ranking((1.0, 1.4, 1.8), 0.0, 1.0, 9).groups() == [(0, 1, 2)]
    assert Ranking((1.0, 3.0), 0.0, 1.0, 9).groups() == []


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 0), (2, 0)), ((2, 3, 4), (2, 3, 4))])
def test_answers_of_other_images_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="same N > 0"):
        paired_difference(np.zeros(shapes[0], bool), np.zeros(shapes[1], bool))


def test_a_ranking_needs_three_networks() -> None:
    with pytest.raises(ValueError, match="at least 2 blocks and 3 networks"):
        friedman_nemenyi(np.ones((5, 2)))
