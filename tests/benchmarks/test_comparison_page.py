"""The page of a comparison in a real browser: it sorts, filters, opens runs, saves plots, and says what to take."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
FOLDER = Path(__file__).parents[2] / "benchmarks"
OURS = ("harness", "report", "comparison", "cnn_vs_vit")
#: name, kind, parameters, milliseconds, chance of being right
NETWORKS = (
    ("small<b>", "CNN", 200_000, 1.0, 0.7),
    ("middle", "ViT", 500_000, 2.0, 0.9),
    ("big", "hybrid", 5e6, 9.0, 0.9),
)


def exported(params: int, accuracy: float) -> dict[str, Any]:
    """A file with a byte for each parameter; of the large network there is none."""
    if params > 1e6:
        return {"why": "no <operator>"}
    found = {"bytes": params, "images_per_second": 10.0, "latency_ms": {"p50": 1.0, "p95": 2.0}}
    return {**found, "accuracy": accuracy, "same_answers": 0.9}


def load(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison of three networks, two shares and three seeds, without the training."""
    sys.path.insert(0, str(FOLDER))
    out = tmp_path_factory.mktemp("comparison")
    (out / "pieces").mkdir()
    models, answers, pieces = (load(f"comparison.{n}") for n in ("models", "answers", "pieces"))
    rng = np.random.default_rng(0)
    entries, records = [], []
    machine = {"command": "python", "date": "today", "cpu": "one", "threads": 1, "cores": 2, "load": 0.0}
    machine |= {"git": None, "versions": {}}
    for name, kind, params, ms, chance in NETWORKS:
        entry = models.Entry(name, kind, params, 0.01)
        entries.append(entry)
        speed = {"images_per_second": 1000 / ms, "peak_bytes": 2**30, "latency_ms": {"p50": ms, "p95": 2 * ms}}
        if name != "big":  # which is as in a record of before
            speed["latency_ms"]["rounds"] = [0.5 * ms, 0.8 * ms, ms, 1.5 * ms, 4 * ms]
        for job in ("inference", "training"):
            about = {"model": name, "job": job}
            records.append({"kind": "speed", "status": "done", "about": about, "result": speed, "machine": machine})
        for seed in range(3):
            for fraction in (0.1, 1.0):
                right = rng.random(800) < chance - 0.3 * (fraction < 1)
                key = pieces.training_key(entry, "equal", seed, fraction)
                found = answers.Answers(np.arange(800), np.zeros(800, int), (~right).astype(int), np.ones(800))
                found.write(out / "pieces" / f"{key}.parquet")
                result = {"accuracy": float(right.mean()), "ece": 0.1, "steps": 100, "seconds_per_step": 0.6}
                result |= {"train_images": int(1000 * fraction), "images": 800}
                if fraction == 1:
                    result["exported"] = {"int8": exported(params, right.mean() - 0.01 * (seed + 1))}
                about = {"model": name, "recipe": "equal", "seed": seed, "fraction": fraction}
                records.append(
                    {"kind": "train", "status": "done", "about": about, "result": result, "machine": machine}
                )
    options = load("comparison.options")
    told = ["--models", "a", "--data.path", "x", "--out", str(out), "--budget.steps", "9", "--recipes", "equal"]
    told += ["--corruptions", "none", "--fractions", "0.1,1", "--export.precisions", "int8"]
    plan = options.check(options.parse(told))
    data = {"name": "made", "classes": 2, "train_images": 1000, "held_out_images": 800}
    yield load("comparison.report").write_report(out, plan, entries, data, records)
    sys.path.remove(str(FOLDER))
    for name in [n for n in sys.modules if n.split(".")[0] in OURS and n != "comparison.small"]:
        del sys.modules[name]


@pytest.fixture
def page(browser: Any, written: Path) -> Iterator[Any]:
    problems: list[str] = []
    asked: list[str] = []
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(written.as_uri())
    yield opened
    opened.close()
    assert problems == []
    assert [u for u in asked if not u.startswith(("data:", "blob:"))] == [written.as_uri()]


@pytest.mark.long
def test_the_box_says_what_keeps_the_limits(page: Any) -> None:
    names = lambda: page.eval_on_selector_all("#survivors strong", "n => n.map(x => x.textContent)")  # noqa: E731
    assert set(names()[:2]) == {"middle, equal recipe", "big, equal recipe"}
    assert names()[2] == "small<b>, equal recipe"
    assert "not told apart from the first" in page.text_content("#survivors li:nth-child(2)")
    assert "not told apart" not in page.text_content("#survivors li:nth-child(3)")
    page.fill("#choose [name=ms]", "3")
    assert names() == ["middle, equal recipe", "small<b>, equal recipe"]
    page.fill("#choose [name=mb]", "1")  # 500,000 parameters are 2 MB
    assert names() == ["small<b>, equal recipe"]
    page.fill("#choose [name=images]", "150")
    page.fill("#choose [name=classes]", "40")
    note = page.text_content("#choice-note")
    assert note.startswith("Measured with 100 training images. These were measured on 2 classes")
    page.fill("#choose [name=mb]", "0.1")
    assert page.text_content("#choice-note").endswith("Nothing keeps these limits.")
    page.fill("#choose [name=ms]", "")
    page.fill("#choose [name=mb]", "")
    page.fill("#choose [name=file]", "0.3")
    assert names() == ["small<b>, equal recipe"]  # by the size of its network's file on all images
    assert page.text_content("#survivors li").endswith("0.8 MB, 0.20 MB as ONNX in int8")
    page.fill("#choose [name=file]", "9")
    assert names() == ["middle, equal recipe", "small<b>, equal recipe"]  # of the third there is no file


@pytest.mark.long
def test_what_was_not_compared_is_not_called_different(browser: Any, written: Path, tmp_path: Path) -> None:
    """Pairs are made within a recipe; across recipes the order alone says nothing."""
    text = written.read_text()
    assert text.count('"compared":[') == 6
    apart = tmp_path / "apart.html"
    apart.write_text(text.replace('"compared":[', '"compared": [], "elsewhere": ['))
    page = browser.new_page()
    page.goto(apart.as_uri())
    said = page.eval_on_selector_all("#survivors li", "n => n.map(x => x.textContent.includes('not compared with'))")
    page.close()
    assert said == [False, True, True]


def test_a_point_opens_its_run(page: Any) -> None:
    points = page.query_selector_all("#latency [data-run]")
    assert len(points) == 3
    assert page.is_hidden("#run")
    points[2].hover()
    told = page.text_content("#run")
    assert told.startswith("big, equal recipe")
    assert "20.0 MB in float32" in told
    points[2].click()
    page.mouse.move(5, 5)
    assert page.is_visible("#run")
    page.keyboard.press("Escape")
    assert page.is_hidden("#run")
    points[0].focus()
    assert page.text_content("#run").startswith("small<b>")


def test_bars_of_a_point_are_its_quartiles_and_its_spread(page: Any) -> None:
    runs = json.loads(page.text_content("#data"))["runs"]
    points = page.query_selector_all("#latency [data-run]")
    where = [(float(p.get_attribute("cx")), runs[int(p.get_attribute("data-run"))]) for p in points]
    (x0, first), (x1, second), (x2, third) = where
    assert first["quartiles"] == [0.8, 1.0, 1.5]
    assert third["quartiles"] == [9.0, 9.0, 9.0]  # one number alone
    assert x0 < x1 < x2
    scale = (x1 - x0) / math.log(second["ms"] / first["ms"])
    bars = page.eval_on_selector_all("#latency path", "n => n.map(p => p.getAttribute('d'))")
    for (at, run), bar in zip(where, bars, strict=True):
        place, low, high, left, y, right = map(float, re.findall(r"[-\d.]+", bar))
        assert place == at
        assert high < y < low
        assert left == pytest.approx(at + scale * math.log(run["quartiles"][0] / run["ms"]), abs=0.2)
        assert right == pytest.approx(at + scale * math.log(run["quartiles"][2] / run["ms"]), abs=0.2)
        assert 56 < left <= at <= right < 640
    points[0].focus()
    assert "0.80 to 1.50 ms" in page.text_content("#run")


def test_tables_sort_and_filter(page: Any) -> None:
    column = "#table-0 tbody tr:not([hidden]) td:first-child"
    shown = lambda: page.eval_on_selector_all(column, "n => n.map(x => x.textContent)")  # noqa: E731
    page.click("#table-0 th button")
    assert shown() == ["big", "middle", "small<b>"]
    page.click("#table-0 th button")
    assert shown() == ["small<b>", "middle", "big"]
    page.fill("[data-table=table-0]", "MID vit")
    assert shown() == ["middle"]
    assert page.text_content("p:has([data-table=table-0]) output") == "1 of 3 rows"


def test_small_probabilities_sort_before_larger_ones(page: Any) -> None:
    head = page.locator("th", has_text="p (Holm)")
    cells = head.locator("xpath=ancestor::table").locator("tbody tr")
    at = head.evaluate("cell => cell.cellIndex")
    head.locator("button").click()
    shown = [cells.nth(i).locator("td").nth(at).text_content() for i in range(cells.count())]
    assert shown[0] == "< 0.001"
    values = [float(text.removeprefix("< ")) for text in shown]
    assert values == sorted(values)
    assert values[-1] > 0.001


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(42.0, 82.0, [50, 60, 70, 80]), (10.2, 13.1, [10.5, 11, 11.5, 12, 12.5, 13]), (98.0, 101.0, [98, 99, 100, 101])],
)
def test_marks_of_an_axis_are_round(written: Path, low: float, high: float, marks: list[float]) -> None:
    assert load("comparison.page")._ticks(low, high) == pytest.approx(marks)


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(0.8, 2.8, [1, 1.5, 2]), (0.3, 40.0, [0.5, 1, 2, 5, 10, 20]), (0.9, 9000, [1, 10, 100, 1000])],
)
def test_marks_of_a_logarithmic_axis_are_round(written: Path, low: float, high: float, marks: list[float]) -> None:
    assert load("comparison.page")._log_ticks(low, high) == pytest.approx(marks)


def test_plots_are_saved_as_svg(page: Any, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.click("button.save")
    download.value.save_as(tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert text.startswith("<svg")
    assert text.count("<circle") == 3
    links = page.query_selector_all("figcaption a[download$='.svg']")
    assert {link.get_attribute("download") for link in links} >= {"accuracy_cost.svg", "critical_difference_equal.svg"}


def test_the_page_tells_real_differences(written: Path) -> None:
    text = written.with_name("results.md").read_text()
    assert "middle is better" in text
    assert "no difference seen; n = 3 would show" in text
    row = "| 0.50 ± 0.00 | 1.00 ± 0.00 | 2.00 ± 0.00 | 10 ± 0 | "
    assert f"| middle | ViT | equal {row}" in text
    assert "| -2.0 ± 1.0 | 90.0 ± 0.0 |" in text
    assert "- big, equal recipe, seed 0, 100 % of the images: not exported as int8 (no <operator>)" in text
    assert "no &lt;operator&gt;" in written.read_text()
    assert json.loads(written.with_name("results.json").read_text())["models"]
    assert "small&lt;b&gt;" in written.read_text()
    assert "<b>," not in written.read_text()
