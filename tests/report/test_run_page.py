"""The page of a run: what is on it, whatever the data are called, and whatever is missing or damaged."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run

from visionzoo.cli.main import main
from visionzoo.files import write_json, write_text
from visionzoo.report import write_report
from visionzoo.runs import RunFolder
from visionzoo.runs.answers import read_answers
from visionzoo.runs.gallery import GalleryAbout, GalleryPicture, write_gallery

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "<!-- comment",
    "line\u2028end",
    "right\u202eleft",
    "nul\x00 esc\x1b[31m",
    "{{ 7 * 7 }}",
    "'onmouseover='alert(4)",
    "&lt;b&gt;",
)
#: What a page is made of.
KNOWN = {
    *("html", "head", "meta", "link", "title", "style", "body", "a", "header", "nav", "main", "section", "noscript"),
    *("h1", "h2", "h3", "p", "bdi", "span", "code", "pre", "ul", "li", "div", "dl", "dt", "dd", "details", "summary"),
    *("figure", "figcaption", "img", "output", "svg", "line", "text", "path", "circle", "g", "dialog", "script"),
    *("table", "thead", "tbody", "tr", "th", "td", "button", "label", "input"),
}


class Elements(HTMLParser):
    """What a page consists of."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass


def data_of(page: str) -> dict[str, object]:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert text is not None
    assert not set(text[1]) & {"<", ">", "&", "\u2028"}
    return json.loads(text[1])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("runs") / "<i>run"
    folder = make_run(
        path, classes=HOSTILE, samples="<script>alert({})</script>\u202e", bad=[(*HOSTILE[:2], HOSTILE[2])]
    )
    text = folder.metrics_csv.read_text().replace("train/loss", "train/<script>alert(5)</script>loss")
    folder.metrics_csv.write_text(text)
    write_text(folder.config_yaml, "".join(f"- {name}\n" for name in HOSTILE))
    return write_report(path).read_text(encoding="utf-8")


def test_names_are_shown_and_never_obeyed(hostile: str) -> None:
    found = Elements(hostile)
    assert {tag for tag, _ in found.tags} <= KNOWN
    assert [tag for tag, _ in found.tags].count("script") == 2
    for tag, values in found.tags:
        assert not [name for name in values if name.startswith("on") or name == "style"], (tag, values)
        assert (values.get("src") or "data:").startswith("data:")
        assert (values.get("href") or "#").startswith(("#", "data:"))
    shown = "".join(found.texts["bdi"])
    for name in HOSTILE[:5]:
        assert name.replace("\u2028", "\\u2028") in shown
    assert "right\\u202eleft" in shown
    assert "{{ 7 * 7 }}" in shown
    assert not re.search("[\x00-\x08\x0e-\x1f\u202a-\u202e\u2028\u2029]", hostile)
    labels = {i["alt"] for i in data_of(hostile)["images"]}  # type: ignore[attr-defined]
    assert any(HOSTILE[0] in alt for alt in labels)


def test_the_policy_lets_nothing_run_but_what_was_written(hostile: str) -> None:
    tags = Elements(hostile).tags
    policy = next(v["content"] or "" for _, v in tags if v.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        text = re.search(f"<{tag}>(.*?)</{tag}>", hostile, re.S)
        assert text is not None
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy


@pytest.mark.long
def test_ten_thousand_images_take_less_than_five_seconds_and_8_mb(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 10_000, edge=48, noise=True)  # noise is as large as a picture of its size gets
    start = time.perf_counter()
    page = write_report(folder)
    assert time.perf_counter() - start < 5
    assert 1e6 < page.stat().st_size < 8e6
    about = read_answers(folder.answers).about
    assert about.images == 10_000
    assert about.cells == len(about.matrix) == 100


def test_a_thousand_classes_list_what_is_confused_and_every_number_opens_images(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1500, [f"class {k}" for k in range(1000)])
    page = write_report(folder).read_text()
    wrong = sum(label != answer for label, answer, _ in read_answers(folder.answers).about.matrix)
    assert page.count('data-opens="pair-') == min(1000, wrong)
    assert 'class="matrix"' not in page
    assert len(page) < 8e6


def test_what_is_on_the_page(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    titles = re.findall(r"<h[23][^>]*>([^<]+)</h", page)
    strips = ["Most confident mistakes", "Least sure", "Slowest to learn"]
    assert titles[:7] == ["Result", "Curves", "Confusion matrix", "Images", *strips]
    assert "70.0\u00a0%" in page
    assert "wrong until epoch" in page
    assert 'aria-label="Loss over step' in page
    about = read_answers(tmp_path / "run" / "answers.parquet").about
    assert f"temperature {about.temperature:.3g}" in page
    again = sum(n / about.images * abs(sure - right) for n, sure, right in about.reliability[1])
    assert again == pytest.approx(about.calibration_error[1], abs=1e-6)


def test_an_old_folder_has_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    folder.answers.unlink()
    folder.results.unlink()
    page = write_report(folder).read_text()
    assert "has no results.json and no answers.parquet" in page
    assert f"visionzoo train classify fit --resume {folder.path}" in page
    assert "not recorded" in page  # minutes
    for path in (folder.metrics_csv, folder.record, folder.model_config, folder.per_class):
        path.unlink()
    page = write_report(folder).read_text()
    assert "There are no curves" in page
    assert "has no run.json" in page


FILES = ("answers.parquet", "run.json", "config.json", "results.json", "per_class.csv", "metrics.csv")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_rest_is_there(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    whole = (folder.path / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"\xff\x00\xfe nothing", b""):
        (folder.path / name).write_bytes(damaged)
        page = write_report(folder).read_text(encoding="utf-8")
        assert "What was run" in page
        if name not in ("per_class.csv", "metrics.csv"):  # half a table is a table
            assert re.search(rf'class="warning">[^<]*{re.escape(name)}', page)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in _places(value[key], (*path, key)))]


@pytest.mark.parametrize("name", ["run.json", "config.json", "results.json"])
def test_whatever_stands_in_a_file_there_is_a_page(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", 20)
    for path in (folder.answers, folder.metrics_csv, folder.per_class):
        path.unlink()
    whole = json.loads((folder.path / name).read_text())
    for place in _places(whole):
        for other in (5, "x", [[1]], None):
            changed = json.loads(json.dumps({"top": whole}))
            owner = changed
            for key in ("top", *place)[:-1]:
                owner = owner[key]
            owner[("top", *place)[-1]] = other
            (folder.path / name).write_text(json.dumps(changed["top"]))
            assert "What was run" in write_report(folder).read_text()


def test_numbers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = make_run(tmp_path / "run")
    table = pq.read_table(folder.answers)
    told = json.loads(table.schema.metadata[b"visionzoo"])
    for change in ({"classes": ["a", "b"]}, {"matrix": [[0, 99, 1]]}, {"images": "many"}, {"schema_version": 9}):
        metadata = {b"visionzoo": json.dumps({**told, **change}).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), folder.answers)
        with pytest.raises(ValueError, match=r"answers\.parquet"):
            read_answers(folder.answers)
    pq.write_table(table.drop_columns(["label"]), folder.answers)
    with pytest.raises(ValueError, match="no column label"):
        read_answers(folder.answers)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "pictures")
    assert main(["report", str(folder.path)]) == 0
    assert capsys.readouterr().out.strip() == str(folder.report)
    assert main(["report", str(tmp_path / "picture")]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert not RunFolder(tmp_path).report.exists()


def test_pictures_that_are_none_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    kept = [GalleryPicture("cats", "a cat", [], b"<svg onload=alert(1)>")]
    curves = (("none", ()), ("one", ((1.0, 2.0),)))
    about = GalleryAbout(section="Cats", curves_title="Share", curves_x="places", curves=curves)
    write_gallery(folder.path / "cats.parquet", kept, about)
    page = write_report(folder).read_text()
    assert "a picture begins with" in page
    assert "onload=alert(1)>" not in page
    write_gallery(folder.path / "cats.parquet", [], about)
    page = write_report(folder).read_text()
    assert 'd="M"' not in page
    assert "Cats" in page


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_spike_does_not_press_the_curve_flat(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    rows = "".join(f"0,{s},{1e38 if s == 1 else 1 / (1 + s)}\n" for s in range(100))
    folder.metrics_csv.write_text(f"epoch,step,train/loss\n{rows}")
    page = write_report(folder).read_text()
    assert "highest value 1e+38 not shown" in page
    folder.metrics_csv.write_text("epoch,step,train/loss\n0,0,1e308\n0,1,-1e308\n")
    assert "Curves" in write_report(folder).read_text()


def test_what_fit_has_tried_is_on_the_page_of_its_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 50)
    for path in (folder.metrics_csv, folder.config_yaml):
        path.unlink()
    trials = [
        {"name": "linear", "setting": "penalty 1e-05", "accuracy": 0.857, "images": 1438, "minutes": 0.2, "note": ""},
        {"name": "scratch", "accuracy": None, "images": 0, "minutes": 0.0, "note": "left out: <b>"},
    ]
    write_json(folder.path / "fit.json", {"trials": trials, "minutes": 0.43})
    page = write_report(folder).read_text()
    assert "What was tried" in page
    assert "85.7\u00a0%" in page
    assert "left out: &lt;b&gt;" in page
    assert "0.4 min" in page
    assert "There are no curves" not in page  # nothing was trained step by step
