"""The page in a real browser: every cell of the matrix opens the images that it counts, by mouse and by keyboard."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import answers, make_run
from PIL import Image

from visionzoo.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
IMAGES = 100


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(
        tmp_path_factory.mktemp("runs") / "run", IMAGES, classes=("<script>alert(1)</script>", *"bcdefghij")
    )
    write_report(folder)
    return folder.report


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    """The page, opened; an error in it, or anything that it asks the network for, fails the test."""
    problems: list[str] = []
    opened = browser.new_page(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: problems.append(dialog.message))
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(run.as_uri())
    yield opened
    opened.close()
    assert problems == []
    assert [url for url in asked if not url.startswith("data:")] == [run.as_uri()]


def position_in(source: str) -> int:
    """The position that ``made_run.picture_of`` has drawn."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("L"))
    return sum(1 << bit for bit, value in enumerate(pixels[0]) if value > 127)


def opened_images(page: Any) -> list[tuple[int, int]]:
    """(place that is said, place that the picture shows) of the images in the dialog."""
    found = page.eval_on_selector_all(
        "dialog figure", "figures => figures.map(f => [f.dataset.place, f.querySelector('img').src])"
    )
    return [(int(place), position_in(source)) for place, source in found]


@pytest.mark.long
def test_every_cell_opens_the_images_that_it_counts(page: Any) -> None:
    logits, labels = answers(IMAGES, 10)
    predicted = logits.argmax(1)
    cells = page.locator(".matrix tbody td")
    assert cells.count() == 100
    for label in range(10):
        for answer in range(10):
            expected = set(((labels == label) & (predicted == answer)).nonzero()[:, 0].tolist())
            button = cells.nth(10 * label + answer).locator("button")
            assert button.count() == bool(expected)
            if not expected:
                continue
            assert button.inner_text() == str(len(expected))
            button.click()
            assert page.locator("dialog").is_visible()
            found = opened_images(page)
            assert {place for place, _ in found} == expected
            assert all(said == drawn for said, drawn in found)
            page.keyboard.press("Escape")
            assert page.locator("dialog").is_hidden()


def test_the_keyboard_is_enough(page: Any) -> None:
    first = page.locator(".matrix button").first
    page.locator("#matrix").evaluate("section => { section.tabIndex = -1; section.focus(); }")
    for _ in range(4):  # past the region that scrolls
        page.keyboard.press("Tab")
        if first.evaluate("button => button === document.activeElement"):
            break
    else:
        pytest.fail("the tabulator does not come to the matrix")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "predicted" in second
    page.keyboard.press("Enter")
    assert page.locator("#opened-title").inner_text() == second
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == second  # back where it was


def test_tables_are_sorted_and_a_name_is_only_a_name(page: Any) -> None:
    table = page.locator("#table-classes")

    def column(i: int) -> list[str]:
        return table.locator(f"tbody td:nth-child({i})").all_inner_texts()

    recall = table.locator("thead button", has_text="recall")
    recall.click()
    values = [float(text.rstrip("\u00a0%")) for text in column(3)]
    assert values == sorted(values, reverse=True)
    recall.click()
    assert [float(text.rstrip("\u00a0%")) for text in column(3)] == sorted(values)
    table.locator("thead button", has_text="class").click()
    assert column(1)[0] == "<script>alert(1)</script>"
    assert table.locator("th[aria-sort]").count() == 1


def test_charts_say_values(page: Any) -> None:
    chart = page.locator("#chart-curve-0")
    chart.locator("svg").hover()
    assert "train/loss" in chart.locator(".readout").inner_text()
    chart.locator("svg").focus()
    page.keyboard.press("Home")
    assert chart.locator(".readout").inner_text().startswith("step 0 · train/loss")
    page.keyboard.press("ArrowRight")
    assert chart.locator(".readout").inner_text().startswith("step 1 ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_horizontal_scrolling(browser: Any, run: Path, scheme: str) -> None:
    opened = browser.new_page(viewport={"width": 360, "height": 700}, color_scheme=scheme)
    opened.goto(run.as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") == 360
    dark = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(20, 23, 28)") == (scheme == "dark")
    opened.close()
