"""The page in a real browser, with the network cut off: clicks, drags, uploads, and annotating a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.rle import read_segmentation
from visionzoo.embedded import EMBEDDED
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.runs.answers import read_answers, write_answers

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
#: Where pictures of the tabs go, for the documentation.
PICTURES = os.environ.get("VISIONZOO_SCREENSHOTS")


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server; what it asks of others, or an error in it, fails the test."""
    problems: list[str] = []
    pages = []

    def run(server: Any, path: str = "", **options: Any) -> Any:
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        page.set_default_timeout(15000)

        def guard(route: Any) -> None:
            if route.request.url.startswith((server.address + "/", "data:", "blob:")):
                route.continue_()
            else:
                problems.append(route.request.url)
                route.abort()

        def heard(message: Any) -> None:
            if message.type == "error" and not re.search(
                "status of (400|409|500)", message.text
            ):  # what a test asked wrongly
                problems.append(message.text)

        page.route("**/*", guard)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", heard)
        page.goto(server.address + path)
        page.wait_for_selector("body[data-ready=yes]", timeout=60000)  # the segmenter may be loaded for it
        pages.append(page)
        return page

    yield run
    for page in pages:
        page.close()
    assert problems == []


def keep(page: Any, name: str) -> None:
    if PICTURES:  # for the docs, which name no path of this machine
        page.evaluate("document.getElementById('saved').textContent = '2 saved in photos/instances_train.json'")
        page.screenshot(path=f"{PICTURES}/demo-{name}.png")


def canvas_point(page: Any, x: float, y: float, width: int, height: int) -> tuple[float, float]:
    """Where pixel (x, y) of the picture is on the screen."""
    box = page.locator("#canvas").bounding_box()
    return box["x"] + x / width * box["width"], box["y"] + y / height * box["height"]


def visible_masks(demo: Any) -> None:
    """Whatever the embedded model has learned: a click has a mask of a tenth of the picture."""
    predictor = vz.SamPredictor(demo.segment.predictor.model)
    predictor.set_image(demo.folder.read(0))
    logits = predictor.predict(np.array([[64, 64]]), np.array([1]), multimask_output=False, return_logits=True)[0]
    predictor.model.mask_threshold = float(np.quantile(logits, 0.9))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((Path(__file__).parents[2] / "visionzoo/serve/samples").glob("nuclei-*.png"))[:2]:
        shutil.copy(path, folder)
    return folder


def saved(folder: Path) -> dict[str, Any]:
    path = folder / "instances_train.json"
    return json.loads(path.read_text()) if path.exists() else {"annotations": [], "images": [], "categories": []}


@pytest.mark.long
def test_a_folder_is_annotated(start: Callable[..., Any], open_page: Callable[..., Any], photos: Path) -> None:
    server = start(folder=str(photos))
    page = open_page(server)
    expect(page.locator("#place")).to_have_text("1 of 2: nuclei-1.png")
    expect(page.locator("#segment-status")).to_have_text("")
    assert server.demo.segment.encoded == 1
    size = Image.open(photos / "nuclei-1.png").size

    with page.expect_response("**/objects", timeout=90000):  # the segmenter is loaded for it
        page.mouse.click(*canvas_point(page, 132, 62, *size))  # a click
    assert len(saved(photos)["annotations"]) == 1
    with page.expect_response("**/objects"):
        page.keyboard.down("Shift")
        page.mouse.click(*canvas_point(page, 20, 30, *size))  # what is not part of it
        page.keyboard.up("Shift")
    predictor = vz.SamPredictor(server.demo.segment.predictor.model)
    predictor.set_image(photos / "nuclei-1.png")
    scale = page.locator("#canvas").bounding_box()["width"] / size[0]
    near = 1.0 / scale  # a pixel of the screen
    masks, _, _ = predictor.predict(np.array([[132, 62], [20, 30]]), np.array([1, 0]), multimask_output=False)
    found = saved(photos)["annotations"][0]
    drawn = read_segmentation(found["segmentation"], size[1], size[0]).mask()
    union = np.logical_or(drawn, masks[0]).sum()
    assert near <= 1
    assert np.logical_and(drawn, masks[0]).sum() / union > 0.95

    page.locator("#new-object").click()
    with page.expect_response("**/objects"):  # a box
        page.mouse.move(*canvas_point(page, 192, 47, *size))
        page.mouse.down()
        page.mouse.move(*canvas_point(page, 214, 67, *size), steps=4)
        page.mouse.up()
    assert len(saved(photos)["annotations"]) == 2
    name = page.locator("#objects input").nth(1)
    with page.expect_response("**/objects"):
        name.fill("nucleus")
        name.press("Tab")
    assert [c["name"] for c in saved(photos)["categories"]] == ["object", "nucleus"]
    page.wait_for_timeout(200)
    keep(page, "segment")
    with page.expect_response("**/objects"):
        page.locator("#undo").click()
    with page.expect_response("**/objects"):
        page.locator("#undo").click()
    assert len(saved(photos)["annotations"]) == 1

    visible_masks(server.demo)
    with page.expect_response("**/open"):
        page.locator("#next").click()
    expect(page.locator("#place")).to_contain_text("2 of 2")
    expect(page.locator("#segment-status")).to_have_text("")
    with page.expect_response("**/objects"):
        page.locator("#canvas").focus()
        for key in ("ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        page.evaluate(
            "new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)))"
        )  # laid out anew
        page.keyboard.press("Space")
    assert len(saved(photos)["annotations"]) == 2
    assert server.demo.segment.encoded == 2  # once for each picture
    with page.expect_response("**/open"):
        page.keyboard.press("p")
    expect(page.locator("#objects li")).to_have_count(1)  # what was drawn is there again
    splits = open_data(str(photos), "objects")  # as train.py segment fit --data.path reads it
    assert splits.train.object_counts[0] == 1
    assert "segment fit --data.path" in page.locator("#retrain-command").text_content()


@pytest.mark.long
def test_two_windows_on_one_folder_lose_nothing_and_a_bad_file_is_no_wall(
    start: Callable[..., Any], open_page: Callable[..., Any], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "nuclei-1b.png").write_text("no picture")
    server = start(folder=str(photos))
    visible_masks(server.demo)
    size = Image.open(photos / "nuclei-1.png").size
    one, other = open_page(server), open_page(server)

    def click(page: Any, x: float, y: float) -> None:
        with page.expect_response(lambda answer: answer.url.endswith("/objects") and answer.status != 409):
            page.mouse.click(*canvas_point(page, x, y, *size))
        expect(page.locator("#saved")).not_to_have_text("saving …")

    click(one, 64, 64)
    click(other, 132, 62)
    assert len(saved(photos)["annotations"]) == 2  # both
    expect(other.locator("#objects li")).to_have_count(2)
    one.locator("#objects button").first.click()
    expect(one.locator("#saved")).to_contain_text("1 saved")  # its own is gone, the other's is not
    assert len(saved(photos)["annotations"]) == 1

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("visionzoo.serve.annotations.write_json", full)
        one.locator("#new-object").click()
        click(one, 64, 64)
        expect(one.locator("#error")).to_contain_text("No space left")
        expect(one.locator("#saved")).to_contain_text("Not saved")
    one.locator("#next").click()
    expect(one.locator("#error")).to_contain_text("nuclei-1b.png: this is no picture that can be read")
    one.locator("#next").click()
    expect(one.locator("#place")).to_contain_text("3 of 3")
    expect(one.locator("#error")).to_be_hidden()


@pytest.mark.long
def test_of_pictures_that_come_late_the_last_asked_for_is_shown(
    start: Callable[..., Any], open_page: Callable[..., Any], photos: Path
) -> None:
    page = open_page(start(folder=str(photos)))
    held: list[Any] = []
    page.route("**/page/folder/1/open", lambda route: held.append(route))  # a slow network: answered after the next
    page.keyboard.press("n")
    page.wait_for_timeout(100)
    with page.expect_response("**/page/folder/0/open"):
        page.keyboard.press("n")
    expect(page.locator("#place")).to_contain_text("1 of 2")
    (late,) = held
    late.continue_()
    page.wait_for_timeout(1000)
    expect(page.locator("#place")).to_contain_text("1 of 2")
    expect(page.locator("#segment-status")).to_have_text("")


@pytest.mark.long
def test_everything_uploads_and_exports(
    server: Any, open_page: Callable[..., Any], nucleus: bytes, tmp_path: Path
) -> None:
    page = open_page(server)
    page.set_input_files("#segment-file", {"name": "mine.png", "mimeType": "image/png", "buffer": nucleus})
    expect(page.locator("#place")).to_have_text("mine.png")
    page.locator("#everything-box summary").click()
    page.select_option("#grid", "8")
    page.select_option("#strict", "0 0")
    page.locator("#everything").click()
    expect(page.locator("#segment-status").first).to_contain_text("objects found", timeout=30000)
    count = page.locator("#objects li").count()
    assert count >= 1
    keep(page, "everything")
    files = {}
    for kind in ("coco", "labels", "cutout"):
        with page.expect_download() as download:
            page.locator(f"[data-export={kind}]").click()
        files[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[kind])
    assert len(json.loads(files["coco"].read_text())["annotations"]) == count
    labels = np.asarray(Image.open(files["labels"]))
    assert 1 <= labels.max() <= count
    assert np.asarray(Image.open(files["cutout"]))[..., 3].any()
    page.set_input_files("#segment-file", {"name": "bad.png", "mimeType": "image/png", "buffer": b"not a picture"})
    page.wait_for_selector("#error:not([hidden])")
    assert "no picture that can be read" in page.locator("#error").inner_text()


@pytest.mark.long
def test_words_name_a_picture_and_find_others(server: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(server)
    page.locator("#tab-segment").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#classify").is_visible()
    expect(page.locator("#zeroshot li").first).to_contain_text("green circle", timeout=30000)  # the first picture
    page.get_by_role("button", name="digits/2.png").click()
    expect(page.locator("#answers li").first).to_contain_text("2", timeout=30000)
    page.select_option("#attention", "classify")
    before = server.demo.clip.encoded
    page.wait_for_selector("#zeroshot li")
    page.fill("#label", "purple dragon")
    with page.expect_response("**/zeroshot*"):
        page.keyboard.press("Enter")
    expect(page.locator("#labels button").first).to_contain_text("purple dragon", timeout=30000)
    assert server.demo.clip.encoded <= before + 13  # the first labels may still have been on their way
    page.get_by_role("button", name="shapes/green-circle.png").click()
    expect(page.locator("#zeroshot li").first).to_contain_text("green circle", timeout=30000)
    page.wait_for_timeout(300)
    keep(page, "classify")
    page.locator("#confusion .matrix button[aria-label^='label 8, predicted 1']").click()
    expect(page.locator("#opened img")).to_have_count(2)
    page.wait_for_timeout(300)
    keep(page, "confusion")
    page.locator("#opened .close").click()
    page.locator("#tab-search").click()
    page.wait_for_selector("#found li")
    assert "shapes/red-" in page.locator("#found li").first.inner_text()
    page.wait_for_timeout(500)
    keep(page, "search")
    with page.expect_response("**/open"):
        page.locator("#found button").first.click()
    assert page.locator("#segment").is_visible()
    expect(page.locator("#segment-status")).to_have_text("")


@pytest.mark.long
def test_a_typed_name_finds_and_names_an_object(
    start: Callable[..., Any], open_page: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    clip = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", text_width=32, text_heads=2)
    sam = vz.create_sam("vit_nano_patch4_32", image_size=64, embedding_stride=4, decoder_dim=32, text_dim=32)
    for task, model, prompts in (
        ("clip", clip, None),
        ("segment", sam, {"model": str(tmp_path / "clip"), "template": "a {}"}),
    ):
        known = {"architecture": model.architecture, "preprocess": model.preprocess, "text_prompts": prompts}
        save_bundle(model, ModelConfig(task=task, **known), tmp_path / task)
    server = start(folder=str(photos), segment=str(tmp_path / "segment"))
    server.demo.segment.predictor.model.mask_threshold = -1000.0  # untrained: no mask of it shall be empty
    page = open_page(server)
    expect(page.locator("#name-form")).to_be_visible()
    page.keyboard.press("Tab")
    name = "<b>cell</b>"
    page.fill("#text-prompt", name)
    with page.expect_response("**/objects") as response:
        page.locator("#text-prompt").press("Enter")
    assert response.value.ok
    expect(page.locator("#objects input").first).to_have_value(name)
    expect(page.locator("#segment-status")).to_contain_text("<b>cell</b>: ")
    assert page.locator("#segment b").count() == 0
    (found,) = saved(photos)["annotations"]
    assert [c["name"] for c in saved(photos)["categories"]] == [name]
    predictor = vz.SamPredictor(server.demo.segment.predictor.model)
    predictor.set_image(photos / "nuclei-1.png")
    masks, scores, _ = predictor.predict(text=server.demo.segment.texts.embed([name])[0])
    height, width = masks.shape[1:]
    assert (read_segmentation(found["segmentation"], height, width).mask() == masks[scores.argmax()]).all()
    page.fill("#text-prompt", "   ")
    page.locator("#text-prompt").press("Enter")
    expect(page.locator("#objects li")).to_have_count(1)


@pytest.mark.long
def test_confusion_cells_open_their_photographs(
    start: Callable[..., Any], open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(EMBEDDED / "digits", run)
    found = read_answers(run / "answers.parquet")
    names = ("<img src=x onerror=alert(1)>", "</script>", *found.about.classes[2:])
    write_answers(run / "answers.parquet", found.rows, replace(found.about, classes=names))
    page = open_page(start(classify=str(run)))
    page.locator("#tab-classify").click()
    cell = page.locator("#confusion .matrix button[aria-label^='label 8, predicted </script>']")
    expect(cell).to_have_text("2", timeout=30000)
    expect(page.locator("#confusion table.sorted")).to_contain_text("</script>")
    assert page.locator("#confusion img[src='x']").count() == 0
    cell.focus()
    page.keyboard.press("Enter")
    pictures = page.locator("#opened img")
    expect(pictures).to_have_count(2)
    for k in range(2):
        expect(pictures.nth(k)).not_to_have_js_property("naturalWidth", 0)
    expect(page.locator("#opened figcaption").first).to_contain_text("✗ </script>")
    expect(page.locator("#opened figcaption").first).to_contain_text("label 8")
    page.keyboard.press("Escape")
    expect(page.locator("#opened")).to_be_hidden()


def test_small_dark_and_by_touch(server: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(server, viewport={"width": 390, "height": 800}, has_touch=True, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#canvas").tap()
    page.wait_for_selector("#objects li")
    keep(page, "phone")
    fields = "[...document.querySelectorAll('button, input, select')]"
    unnamed = f"{fields}.filter(e => !e.textContent.trim() && !e.ariaLabel && !e.labels?.length).length"
    assert page.evaluate(unnamed) == 0


@pytest.mark.long
def test_the_printed_address_lets_in_and_hides_its_token(
    start: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    page = open_page(start(token="a-secret"), "/?token=a-secret")
    assert "a-secret" not in page.url
    expect(page.locator("#place")).to_contain_text("1 of")  # what the page asks for by itself has it too
    page.reload()
    page.wait_for_selector("body[data-ready=yes]")
    (cookie,) = page.context.cookies()
    assert (cookie["value"], cookie["httpOnly"], cookie["sameSite"]) == ("a-secret", True, "Strict")


@pytest.mark.long
def test_documentation_is_drawn(server: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(server)
    page.goto(server.address + "/docs")
    page.wait_for_selector("article")
    assert "POST /v1/masks" in page.locator("#routes").inner_text()
