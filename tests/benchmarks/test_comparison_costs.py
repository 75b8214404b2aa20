"""What accuracy costs: the Pareto front with how sure it is, and the cheapest training that reaches an accuracy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Runs = dict[tuple[str, str, float], list[float]]


def summary(
    load: Any, runs: Runs, latency: dict[str, list[float]], seconds: dict[str, float], busy: tuple[float, ...] = ()
) -> Any:
    """Of networks by (name, recipe, share) -> accuracy of each seed; with milliseconds and seconds of training.

    On the shares ``busy`` the machine did something else too: a step took three times as long.
    """
    models = load("comparison.models")
    entries = [models.Entry(name, "CNN", 1, 0.5) for name in latency]
    records: list[dict[str, Any]] = []
    for name, rounds in latency.items():
        single = {"p50": float(np.median(rounds)), "p95": max(rounds), "rounds": rounds}
        about = {"model": name, "job": "inference"}
        records.append({"kind": "speed", "status": "done", "about": about, "result": {"latency_ms": single}})
    for (name, recipe, fraction), values in runs.items():
        for seed, value in enumerate(values):
            about = {"model": name, "recipe": recipe, "seed": seed, "fraction": fraction}
            result = {"accuracy": value, "ece": 0.1, "steps": round(100 * fraction), "train_images": 1000}
            result["seconds_per_step"] = (seconds[name] + seed) / 100 * (3 if fraction in busy else 1)
            records.append({"kind": "train", "status": "done", "about": about, "result": result})
            if recipe == "pretrained" and fraction == 1:
                before = {"steps": 40, "gmacs": 0.25, "train_seconds": 60.0}
                first = {"model": name, "seed": seed, "method": "mae"}
                records.append({"kind": "pretrain", "status": "done", "about": first, "result": before})
    return load("comparison.summary").summarize(entries, records, 8)


def test_the_front_of_many_draws_is_the_front_of_each(load: Any) -> None:
    pareto = load("comparison.pareto")
    rng = np.random.default_rng(0)
    costs, values = rng.integers(0, 4, (40, 7)), rng.integers(0, 4, (40, 7))  # with ties
    found = pareto.on_front(costs, values)
    for r, i in itertools.product(range(40), range(7)):
        beaten = any(
            c <= costs[r, i] and v >= values[r, i] and (c, v) != (costs[r, i], values[r, i])
            for c, v in zip(costs[r], values[r], strict=True)
        )
        assert found[r, i] == (not beaten)


def test_a_place_on_the_front_is_as_sure_as_seeds_and_rounds_are(load: Any) -> None:
    pareto = load("comparison.pareto")
    runs: Runs = {
        ("cheap", "equal", 1.0): [0.50, 0.51, 0.52],
        ("beaten", "equal", 1.0): [0.40, 0.41, 0.42],
        ("good", "equal", 1.0): [0.80, 0.81, 0.79],
        ("alike", "equal", 1.0): [0.81, 0.78, 0.80],  # of good's accuracy, and of its cost
    }
    latency = {"cheap": [1.0] * 20, "beaten": [2.0] * 20, "good": [3.0, 3.2] * 10, "alike": [3.0, 3.2] * 10}
    made = summary(load, runs, latency, dict.fromkeys(latency, 300.0))
    rows = {row.score.entry.name: row for row in pareto.fronts(made, ["equal"])}
    assert (rows["cheap"].by_latency, rows["beaten"].by_latency) == (1.0, 0.0)
    assert 0.3 < rows["good"].by_latency < 1
    assert 0.3 < rows["alike"].by_latency < 1
    assert rows["good"].latency == (3.0, 3.1, 3.2)
    assert rows["good"].by_minutes == pytest.approx(rows["alike"].by_minutes, abs=0.4)
    again = {row.score.entry.name: row for row in pareto.fronts(made, ["equal"])}
    assert again == rows
    table = load("comparison.cost_tables").front(list(rows.values())).markdown()
    assert "| cheap | CNN | equal | 51.0 ± 1.0 | 1.00 | 100 | 5.0 ± 0.0 |" in table
    assert "3.10 (3.00 to 3.20)" in table


def test_with_one_seed_nobody_knows_the_front(load: Any) -> None:
    made = summary(load, {("a", "equal", 1.0): [0.5]}, {"a": [1.0]}, {"a": 60.0})
    (row,) = load("comparison.pareto").fronts(made, ["equal"])
    assert (row.by_latency, row.by_minutes, row.minutes) == (None, None, 1.0)


def test_a_network_without_a_latency_keeps_its_training(load: Any) -> None:
    runs: Runs = {("a", "equal", 1.0): [0.5, 0.6], ("b", "equal", 1.0): [0.3, 0.4]}
    made = summary(load, runs, {"a": [1.0], "b": [0.5]}, {"a": 60.0, "b": 60.0})
    made.speeds[1].inference = None
    one, other = load("comparison.pareto").fronts(made, ["equal"])
    assert (one.by_latency, other.by_latency, other.latency) == (1.0, None, None)
    assert one.by_minutes > other.by_minutes


def test_the_cheapest_training_that_reaches_an_accuracy(load: Any) -> None:
    reach = load("comparison.reach")
    runs: Runs = {
        ("a", "equal", 0.5): [0.85, 0.70, 0.85],
        ("a", "equal", 1.0): [0.90, 0.90, 0.60],
        ("b", "equal", 1.0): [0.50, 0.50, 0.50],
        ("b", "pretrained", 1.0): [0.81, 0.70, 0.70],
    }
    made = summary(load, runs, {"a": [1.0], "b": [1.0]}, {"a": 600.0, "b": 600.0})
    a, b, c, d = reach.reach(made, [0.8, 0.95])
    assert (a.entry.name, len(a.found), a.seeds) == ("a", 3, 3)
    assert a.ways == ["equal, 50 %", "equal, 100 %"]
    assert sorted(run.steps for _, run in a.found) == [50, 50, 100]
    assert a.spread("seconds").mean == pytest.approx((300 + 601 + 301) / 3)
    ((score, run),) = b.found
    assert (score.recipe, run.seed, run.steps, run.images) == ("pretrained", 0, 140, 140 * 8)
    assert run.seconds == 660  # the pretraining is part of the price
    assert run.gmacs == pytest.approx(3 * 8 * (100 * 0.5 + 40 * 0.25))
    assert [r.found for r in (c, d)] == [(), ()]
    text = load("comparison.cost_tables").reached([a, b, c]).markdown()
    assert "| b | CNN | 80 | 1 of 3 | pretrained, 100 % | 11.00 | 140 | 1,120 |" in text
    assert "| a | CNN | 95 | 0 of 3 | not reached | - | - | - | - |" in text
    assert reach.usual_target(made) == 0.76  # the median of 80 and 73.7 per cent, down to a whole one
    assert reach.reach(summary(load, {}, {"a": [1.0]}, {}), []) == []


def test_a_training_that_was_disturbed_costs_what_its_steps_cost_on_another_share(load: Any) -> None:
    runs: Runs = {("a", "equal", share): [0.5, 0.6] for share in (0.5, 1.0)}
    made = summary(load, runs, {"a": [1.0]}, {"a": 600.0}, busy=(1.0,))
    assert [[run.seconds for run in score.runs] for score in made.scores] == [[300, 300.5], [600, 601]]


def test_what_was_timed_is_shown_with_its_spread(load: Any) -> None:
    made = summary(load, {("a", "equal", 1.0): [0.5, 0.6]}, {"a": [1.0, 2.0, 4.0]}, {"a": 60.0})
    timed = {
        "images_per_second": 100.0,
        "peak_bytes": 2**30,
        "seconds": {"wall": {"low": 1.6, "median": 2.0, "high": 2.5}},
    }
    made.speeds[0].training = timed
    made.speeds[0].inference.update(images_per_second=1234.5, peak_bytes=2**29)  # as in a record of before
    entries = [made.speeds[0].entry]
    text = load("comparison.cost_tables").cost(made, entries).markdown()
    assert "| 100 (80 to 125) | 1,234 | 2.00 (1.50 to 3.00) | 4.00 | 1.00 | 0.50 | 100 | 1.0 ± 0.0 |" in text


def test_what_was_trained_on_fewer_images_stands_beside_its_like_alone(load: Any) -> None:
    runs: Runs = {
        ("a", "equal", 0.2): [0.5, 0.6],
        ("a", "equal", 1.0): [0.7, 0.8],
        ("a", "pretrained", 0.2): [0.6, 0.65],
    }
    made = summary(load, runs, {"a": [1.0, 2.0]}, {"a": 60.0})
    (entry,) = {s.entry for s in made.scores}
    assert made.score(entry, "pretrained") is None
    assert [r.score.recipe for r in load("comparison.pareto").fronts(made, ["equal", "pretrained"])] == ["equal"]
    options = load("comparison.options")
    told = ["--models", "a", "--data.path", "x", "--out", "o", "--budget.steps", "9", "--recipes", "equal"]
    plan = options.check(options.parse(told))
    plan.recipes.append("pretrained")
    plan.fractions["pretrained"] = [0.2]
    assert plan.on_most_images == ["equal"]
    text = load("comparison.score_tables").accuracy(made, plan, [entry]).markdown()
    assert "The pretrained recipe was run on fewer images alone" in text
    assert "pretrained recipe: top-1" not in text


def test_a_difference_that_many_tests_hide_is_not_called_none(load: Any) -> None:
    verdict = load("comparison.significance").verdict
    difference = load("visionzoo.metrics.differences").Difference
    seen = {"low": 0.01, "high": 0.05, "resolvable": 0.02, "seeds": (3, 3)}
    assert verdict("a", "b", difference(value=0.03, p=0.01, **seen), 0.02) == "a is better"
    assert verdict("a", "b", difference(value=-0.03, p=0.01, **seen), 0.3).startswith("b seems better; among so many")
    assert (
        verdict("a", "b", difference(value=0.03, p=0.3, **seen), 1.0)
        == "no difference seen; n = 3 would show 2.0 points"
    )


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "< 0.001"), (0.0004, "< 0.001"), (0.0006, "0.001"), (0.0126, "0.013"), (1.0, "1.000")]
)
def test_no_probability_is_nought(load: Any, p: float, text: str) -> None:
    assert load("comparison.table").probability(p) == text


@pytest.mark.parametrize("value", ["0", "80"])
def test_an_accuracy_to_reach_is_a_share(load: Any, value: str) -> None:
    options = load("comparison.options")
    told = ["--models", "a", "--data.path", "x", "--out", "o", "--budget.steps", "9", "--reach", value]
    with pytest.raises(ValueError, match=rf"reach={value} must be above 0 and at most 1 \(0.8 is 80 %\)"):
        options.check(options.parse(told))


@pytest.mark.long
def test_bars_and_columns_are_drawn(load: Any, tmp_path: Path) -> None:
    runs: Runs = {
        (name, recipe, fraction): [0.5 + 0.2 * fraction, 0.52 + 0.2 * fraction]
        for name in ("a", "b")
        for recipe in ("equal", "published", "pretrained")
        for fraction in (0.1, 1.0)
    }
    made = summary(load, runs, {"a": [1.0, 1.1], "b": [3.0, 3.6]}, {"a": 60.0, "b": 90.0})
    entries = [s.entry for s in made.speeds]
    plots, front = (
        load("comparison.plots"),
        load("comparison.pareto").fronts(made, ["equal", "published", "pretrained"]),
    )
    found = plots.draw_all(made, entries, front, {}, tmp_path)
    assert set(found) == {"Accuracy against cost", "Data efficiency"}
    assert "equal recipe, pretrained" in found["Accuracy against cost"].with_suffix(".svg").read_text()
