"""The server answers as the predictors do, however many ask, and tells those off who ask too much."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import visionzoo as vz
from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.rle import RLE, read_segmentation
from visionzoo.embedded import EMBEDDED, embedded_names, read_card
from visionzoo.inference.mask_generator import MaskGenerator
from visionzoo.models.preprocess import as_grey
from visionzoo.serve import demo
from visionzoo.serve.batching import Batcher
from visionzoo.serve.bounds import Bounds, Refused
from visionzoo.serve.confusion import Confusion
from visionzoo.serve.services import attention_of


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def digit(i: int) -> bytes:
    from sklearn.datasets import load_digits

    return png((load_digits().images[i] * 15).astype(np.uint8))


def test_200_requests_of_16_clients_are_answered_as_one_at_a_time(server: Any) -> None:
    pictures = [digit(i) for i in range(25)]
    classifier = vz.ImageClassifier.load("embedded", "cpu")
    alone = [classifier.predict(picture)[0] for picture in pictures]

    def ask(i: int) -> Any:
        answer = server.ask("POST", "/v1/classify", pictures[i % 25])
        assert answer.status == 200, answer.body
        return [(a["label"], a["probability"]) for a in answer.json()["answers"]]

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, range(200)))
    assert len(answers) == 200
    for i, answer in enumerate(answers):
        assert [label for label, _ in answer] == [label for label, _ in alone[i % 25]]
        np.testing.assert_allclose([p for _, p in answer], [p for _, p in alone[i % 25]], atol=1e-5)
    metrics = server.ask("GET", "/metrics").body.decode()
    assert int(float(re.search(r'requests_total\{path="/v1/classify",status="200"\} (\S+)', metrics)[1])) >= 200
    count, total = (
        float(re.search(rf'batch_size_{k}{{model="classify"}} (\S+)', metrics)[1]) for k in ("count", "sum")
    )
    assert total > count  # some went together


def test_zero_shot_and_embeddings_are_those_of_the_classifier(server: Any) -> None:
    picture = (Path(server.demo.folder.root) / "shapes" / "red-circle.png").read_bytes()
    labels = ["red circle", "blue star", "green cross"]
    query = "&".join(f"label={label.replace(' ', '+')}" for label in labels)
    for extra, options in (("", {}), ("&multi_label=true", {"multi_label": True})):
        expected = vz.ZeroShotClassifier.load("embedded", labels, "a {}", device="cpu", **options).predict(picture)[0]
        answer = server.ask("POST", f"/v1/zeroshot?{query}&template=a+%7B%7D{extra}", picture).json()["answers"]
        assert [a["label"] for a in answer] == [label for label, _ in expected]
        np.testing.assert_allclose([a["probability"] for a in answer], [p for _, p in expected], atol=1e-5)
    zero = vz.ZeroShotClassifier.load("embedded", labels, "a {}", device="cpu")
    found = server.ask("POST", "/v1/embed", picture).json()["embedding"]
    np.testing.assert_allclose(found, zero.embed([picture])[0], atol=1e-5)
    text = server.ask("POST", "/v1/embed?text=a+red+circle").json()["embedding"]
    np.testing.assert_allclose(text, zero.text_embeddings[0], atol=1e-5)


def test_only_a_new_label_is_encoded(server: Any) -> None:
    picture, clip = digit(0), server.demo.clip
    ask = lambda labels: server.ask("POST", "/v1/zeroshot?template=my+%7B%7D&" + "&".join(labels), picture)  # noqa: E731
    assert ask(["label=cat", "label=dog"]).status == 200
    before = clip.encoded
    assert ask(["label=cat", "label=dog", "label=bird"]).status == 200
    assert clip.encoded == before + 1


def test_masks_are_the_predictors_and_the_encoder_runs_once(server: Any, nucleus: bytes) -> None:
    predictor = vz.SamPredictor.load("embedded", "cpu")
    server.demo.segment.predictor.model.mask_threshold = predictor.model.mask_threshold = -4.0  # no mask is empty
    predictor.set_image(nucleus)
    sent = server.ask("POST", "/v1/pictures", nucleus).json()
    before, times = server.demo.segment.encoded, []
    prompts = [
        ("point=100,120", {"point_coords": [[100, 120]], "point_labels": [1]}),
        ("point=100,120&point=10,12,0", {"point_coords": [[100, 120], [10, 12]], "point_labels": [1, 0]}),
        ("box=80,90,140,150", {"box": [80, 90, 140, 150]}),
    ]
    for query, prompt in prompts * 3:
        start = time.perf_counter()
        answer = server.ask("POST", f"/v1/masks?picture={sent['id']}&{query}").json()
        times.append(time.perf_counter() - start)
        masks, scores, _ = predictor.predict(
            **{k: np.array(v) for k, v in prompt.items()},
            multimask_output=predictor.model.ambiguous and "&" not in query,
        )
        mask = read_segmentation(answer["segmentation"], sent["height"], sent["width"]).mask()
        assert (mask == masks[scores.argmax()]).all()
        assert answer["area"] == mask.sum()
    assert server.demo.segment.encoded <= before + 1
    assert np.median(times) < 0.15
    assert server.ask("POST", "/v1/masks?point=100,120", nucleus).status == 200
    assert server.demo.segment.encoded <= before + 1


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/classify", b"no picture", 400, "no picture that can be read"),
        ("/v1/classify", b"", 400, "empty"),
        ("/v1/classify?top=0", b"x", 422, "top"),
        ("/v1/classify?sets=2", b"x", 422, "sets"),
        ("/v1/classify?picture=nonsense", None, 404, "send it again"),
        ("/v1/zeroshot", "digit", 400, "no labels"),
        ("/v1/zeroshot?label=a&label=A", "digit", 400, "there already"),
        ("/v1/zeroshot?label=a&label=b&template=c", "digit", 400, "{}"),
        ("/v1/zeroshot?" + "&".join(f"label={i}" for i in range(1001)), "digit", 413, "1001 labels"),
        ("/v1/masks", "digit", 400, "say what to segment"),
        ("/v1/masks?point=1", "digit", 400, "x,y"),
        ("/v1/masks?point=inf,nan", "digit", 400, "outside"),
        ("/v1/masks?point=1,1,inf", "digit", 400, "label"),
        ("/v1/masks?point=99,99", "digit", 400, "outside the image of 8x8"),
        ("/v1/masks?" + "&".join(["point=1,1"] * 65), "digit", 400, "at most 64"),
        ("/v1/masks?text=cell", "digit", 400, "takes no names"),
        ("/v1/embed?model=other", "digit", 422, "model"),
        ("/v1/nothing", "digit", 404, "/docs"),
        ("/page/search", None, 400, "words or by a picture"),
        ("/page/folder/9999/open", None, 404, "no picture 9999"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words(server: Any, path: str, body: Any, status: int, words: str) -> None:
    answer = server.ask("POST", path, digit(0) if body == "digit" else body)
    assert (answer.status, words in answer.json()["error"]) == (status, True), answer.body


def test_large_things_are_refused_before_they_cost_anything(start: Callable[..., Any]) -> None:
    small = start(bounds=Bounds(body=2000, pixels=1000))
    assert small.ask("POST", "/v1/classify", b"x" * 2001).status == 413
    assert (
        small.ask("POST", "/v1/classify", iter([b"x" * 1500] * 2), Content_Type="image/png").status == 413
    )  # no length
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    huge = start().ask("POST", "/v1/classify", out.getvalue())
    assert (huge.status, "far too many pixels" in huge.json()["error"]) == (413, True)
    answer = small.ask("POST", "/v1/classify", png(np.zeros((40, 40), np.uint8)))
    assert (answer.status, "1,600 pixels" in answer.json()["error"]) == (413, True)


def test_a_full_line_sends_away_and_loses_nobody() -> None:
    import asyncio

    go = threading.Event()

    def slow(items: list[int]) -> list[int]:
        go.wait(10)
        if 13 in items and len(items) > 1:
            raise ValueError("one of these")
        return [2 * i if i != 13 else 1 // 0 for i in items]

    async def ask_all() -> list[Any]:
        line = Batcher("model", slow, batch=4, waiting=3, seconds=10)
        first = asyncio.ensure_future(line.ask(1))
        await asyncio.sleep(0.1)
        waiting = [asyncio.ensure_future(line.ask(i)) for i in (2, 13, 4)]
        await asyncio.sleep(0.1)
        with pytest.raises(Refused) as refused:
            await line.ask(5)
        assert refused.value.status == 429
        go.set()
        answers = await asyncio.gather(first, *waiting, return_exceptions=True)
        go.clear()
        late = Batcher("late", slow, batch=1, waiting=3, seconds=0.05)
        with pytest.raises(Refused, match=r"0\.05 seconds"):
            await late.ask(1)
        go.set()
        line.close()
        late.close()
        with pytest.raises(Refused, match="stopping"):
            await line.ask(1)
        return answers

    one, two, bad, four = asyncio.run(ask_all())
    assert (one, two, four) == (2, 4, 8)
    assert isinstance(bad, ZeroDivisionError)


def test_what_was_trained_on_drawings_is_taken(
    start: Callable[..., Any], nucleus: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(nucleus)
    server = start(folder="photos")
    assert "--run_dir runs/demo-photos" in server.ask("GET", "/page/state").json()["retrain"]
    key = server.ask("POST", "/page/folder/0/open").json()["id"]
    answer = server.ask("POST", "/page/reload")
    assert (answer.status, "no finished run runs/demo-photos" in answer.json()["error"]) == (404, True)
    shutil.copytree(EMBEDDED / "nuclei", tmp_path / "runs" / "demo-photos2")  # of a folder photos2
    assert server.ask("POST", "/page/reload").status == 404
    shutil.copytree(EMBEDDED / "nuclei", tmp_path / "runs" / "demo-photos-2")
    assert server.ask("POST", "/page/reload").json() == {"name": "runs/demo-photos-2"}
    assert server.ask("POST", f"/v1/masks?picture={key}&point=9,9").status == 200
    assert server.demo.segment.encoded == 1  # by the new model


def test_names_that_are_not_utf_8_do_not_end_the_page(
    start: Callable[..., Any], nucleus: bytes, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(nucleus)
    Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/caf\xe9.png")).write_bytes(nucleus)
    with pytest.warns(UserWarning, match="1 pictures of .* are left out, such as caf"):
        server = start(folder=str(tmp_path / "photos"))
    assert [p["name"] for p in server.ask("GET", "/page/folder").json()["pictures"]] == ["a.png"]


def test_the_first_who_clicks_waits_for_the_segmenter_and_nobody_before(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Any], nucleus: bytes
) -> None:
    loaded: list[str] = []
    load = demo._predictor
    monkeypatch.setattr(demo, "_predictor", lambda source, *rest: loaded.append(source) or load(source, *rest))
    server = start()
    state = server.ask("GET", "/page/state").json()["segment"]
    assert loaded == []
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda x: server.ask("POST", f"/v1/masks?point={x},9", nucleus), (9, 19, 29, 39)))
    assert [answer.status for answer in answers] == [200] * 4
    assert loaded == ["embedded"]
    assert server.ask("GET", "/page/state").json()["segment"] == state  # as was promised
    with pytest.raises(ValueError, match="runs/none"):
        start(segment="runs/none")  # what was named is looked at before anything is answered


@pytest.mark.parametrize(
    "size", [(40, 60), (40, 40)]
)  # (width, height) as stored; a square one has the same size turned
def test_what_is_drawn_in_a_turned_photograph_fits_it_in_training(
    start: Callable[..., Any], tmp_path: Path, size: tuple[int, int]
) -> None:
    for k in range(2):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        photo = Image.fromarray(np.random.default_rng(k).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
        photo.save(tmp_path / f"{k}.jpg", exif=exif)
    server = start(folder=str(tmp_path))
    mask = np.zeros((size[0], size[1]), dtype=bool)
    mask[5:20, 3:9] = True
    sent = {"objects": [{"name": "x", "segmentation": RLE.of(np.ascontiguousarray(mask.T)).uncompressed()}]}
    for k in range(2):
        opened = server.ask("POST", f"/page/folder/{k}/open").json()
        assert (opened["height"], opened["width"]) == mask.shape  # as a person sees it
        assert server.ask("POST", f"/page/folder/{k}/objects", sent).json()["objects"] == 1
    image, objects = open_data(str(tmp_path), "objects").train.pair(0)
    assert (image.height, image.width) == mask.shape
    assert (objects.mask(0) == mask).all()


def test_without_recorded_answers_the_page_says_why_there_is_no_matrix(tmp_path: Path) -> None:
    def shown(source: Path, **options: bool) -> dict[str, Any]:
        return Confusion(str(source), **{"exported": False, "multi_label": False, **options}).shown("/at")

    shutil.copytree(EMBEDDED / "digits", tmp_path / "run")
    assert (
        sum(group["title"].startswith("label 8") for group in shown(tmp_path / "run")["data"]["groups"].values()) == 3
    )
    assert "an export" in shown(tmp_path / "run", exported=True)["why"].lower()
    assert "several labels" in shown(tmp_path / "run", multi_label=True)["why"]
    (tmp_path / "run" / "answers.parquet").write_bytes(b"damaged")
    assert "answers.parquet" in shown(tmp_path / "run")["why"]
    (tmp_path / "run" / "answers.parquet").unlink()
    assert f"fit --resume {tmp_path / 'run'}" in shown(tmp_path / "run")["why"]


def test_pictures_of_the_matrix_are_given_by_their_number(server: Any) -> None:
    shown = server.ask("GET", "/page/confusion").json()
    source = shown["data"]["images"][0]["src"]
    answer = server.ask("GET", source)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/webp")
    assert server.ask("GET", "/page/confusion/99999").status == 404
    assert server.ask("GET", "/page/confusion/-1").status == 404


def test_attention_of_a_grey_classifier() -> None:
    model = vz.create_classifier("vit_nano_patch4_32", num_classes=2, in_chans=1).eval()
    answer = attention_of(model, as_grey(model.preprocess), Image.new("RGB", (40, 30), "teal"))
    seen = Image.open(io.BytesIO(base64.b64decode(answer["seen"].partition(",")[2])))
    assert seen.mode == "L"
    assert np.shape(answer["heat"]) == (8, 8)


def test_a_search_for_everything_that_memory_ends_says_so(monkeypatch: pytest.MonkeyPatch, server: Any) -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise MemoryError

    async def lines() -> list[dict[str, Any]]:
        return [json.loads(line) async for line in await server.demo.segment.everything(Image.new("RGB", (8, 8)))]

    monkeypatch.setattr(MaskGenerator, "generate", generate)
    for _ in range(2):  # the second is let in: the first has given its place back
        assert asyncio.run(lines()) == [{"error": "the search was broken off: out of memory"}]


def test_documentation_is_here(server: Any) -> None:
    routes = server.ask("GET", "/openapi.json").json()["paths"]
    assert {"/v1/classify", "/v1/zeroshot", "/v1/masks", "/v1/embed"} <= set(routes)
    assert not any(path.startswith("/page") for path in routes)
    for path in ("/", "/docs"):
        text = server.ask("GET", path).body.decode()
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert server.ask("GET", "/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("name", ["digits", "nuclei", "shapes", "shapes-mae"])
def test_embedded_models_have_cards(name: str) -> None:
    assert name in embedded_names()
    card = read_card(name)
    assert {"task", "data", "licence", "command", "reached", "file"} <= set(card)


def test_embedded_models_are_small_and_load_by_name() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) <= 15e6
    assert vz.create_sam(weights="embedded").image_size == vz.SamPredictor.load("embedded", "cpu").model.image_size
    assert vz.create_clip(weights="embedded").embed_dim == 64
    made = vz.create_classifier("vit_nano_patch4_32", 10, image_size=16, global_pool="avg", weights="embedded")
    same = vz.ImageClassifier.load("embedded:digits", "cpu").model
    assert all((made.state_dict()[k] == v).all() for k, v in same.state_dict().items())
    with pytest.raises(ValueError, match="did you mean digits"):
        vz.ImageClassifier.load("embedded:digts")
