"""Two runs on one page: which is better, and the images on which they disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import make_run

from visionzoo.cli.main import main
from visionzoo.metrics.differences import error_agreement
from visionzoo.runs.compare import compare_runs

IMAGES = 400


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("compared")
    weak, strong = (make_run(folder / name, IMAGES, share=s, seed=n) for name, s, n in (("a", 0.5, 0), ("b<", 0.8, 1)))
    return weak.path, strong.path


def test_the_better_run_is_named_with_its_images(runs: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    page, values = tmp_path / "deep" / "both.html", tmp_path / "both.json"
    assert main(["bench", "compare", *map(str, runs), "--out", str(page), "--json", str(values)]) == 0
    text = capsys.readouterr().out
    assert "the second is better on images like these: first less second -" in text
    assert f"on the {IMAGES} held-out images that both answered" in text
    found = json.loads(values.read_text())
    counts = [found[k] for k in ("both_right", "only_first", "only_second", "neither")]
    assert sum(counts) == IMAGES
    assert found["accuracy"] == [(counts[0] + counts[1]) / IMAGES, (counts[0] + counts[2]) / IMAGES]
    assert found["difference"] == pytest.approx((counts[1] - counts[2]) / IMAGES)
    assert found["interval"][0] < found["difference"] < found["interval"][1] < 0
    assert len(found["disagree"]) == counts[1] + counts[2]
    assert all((one["first"] == one["label"]) != (one["second"] == one["label"]) for one in found["disagree"])
    assert sum(c["images"] for c in found["classes"]) == IMAGES
    shown = page.read_text()
    assert "Only the second is right" in shown
    assert "b&lt;" in shown
    assert "data:image/webp;base64," in shown


def test_a_run_against_itself_is_no_difference(runs: tuple[Path, Path], capsys: Any) -> None:
    assert main(["bench", "compare", str(runs[0]), str(runs[0]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["p"], found["difference"], found["kappa"], found["disagree"]) == (1.0, 0.0, 1.0, [])
    assert found["verdict"].startswith("no difference seen")


def test_only_images_of_both_are_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    half = make_run(tmp_path / "half", IMAGES // 2, share=0.9, seed=0)
    with pytest.raises(ValueError, match="disagree about the labels"):  # a shorter set draws other labels
        compare_runs(runs[0], make_run(tmp_path / "other", IMAGES, classes=tuple("jihgfedcba")).path)
    assert compare_runs(half.path, half.path).images == IMAGES // 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("names", "answered no image in common: one has 'val/000000.jpg', the other 'test/000000.jpg'"),
        ("none", "has no answers.parquet"),
        ("page", "--out page.png: the file must end in .html"),
        ("missing", "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_said(
    fault: str, message: str, runs: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    other, more = str(tmp_path / "nowhere"), list[str]()
    if fault in ("names", "none"):
        made = make_run(tmp_path / "made", 50, samples="test/{}.jpg")
        other = str(made.path)
        if fault == "none":
            made.answers.unlink()
    if fault == "page":
        more = ["--out", "page.png"]
    assert main(["bench", "compare", str(runs[0]), other, *more]) == 2
    assert message in capsys.readouterr().err


def test_agreement_of_errors_is_cohens_kappa() -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    one, other = rng.random((2, 500)) < 0.7
    assert error_agreement(one, other) == pytest.approx(cohen_kappa_score(one, other))
    assert np.isnan(error_agreement(np.ones(3, bool), np.ones(3, bool)))
