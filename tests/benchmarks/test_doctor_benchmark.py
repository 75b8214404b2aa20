"""The benchmark of the data doctor: every job gives its numbers, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

Load = Callable[[str], ModuleType]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 6)):
        for k, name in enumerate(("red", "green")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.kron(rng.integers(0, 120, (8, 8, 3)), np.ones((4, 4, 1)))
                pixels[..., k] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_job_gives_its_numbers(photos: Path, tmp_path: Path, load: Load) -> None:
    module, out = load("doctor"), tmp_path / "doctor-cpu.json"
    options = ["--model", "vit_nano_patch4_32", "--weights", "random", "--device", "cpu", "--seeds", "0"]
    options += ["--cache", str(tmp_path / "cache"), "--data.path", str(photos), "--other", str(photos / "train/red")]
    options += ["--jobs", "labels", "twins", "next", "drift", "--photographs", "5", "--step", "10", "--most", "30"]
    options += ["--arrived", "20"]
    assert module.main([*options, "--out", str(out)]) == 0
    found = {key: row["found"] for key, row in json.loads(out.read_text())["results"].items()}
    assert found["labels, seed 0"]["precision at k"] > 0.6
    assert found["twins"]["precision"] == 1
    assert found["twins"]["recall"] > 0.5
    assert list(found["next, seed 0"]["badge"]) == ["10", "20", "30"]
    assert found["drift"]["false alarms of 20"] <= 2
    assert found["drift"]["JPEG at quality 10"] > found["drift"]["as they are"]
    page = load("report").report(tmp_path)
    assert "| drift | as they are | " in page
    assert "| next, seed 0 | badge | 10: " in page


def test_labels_that_are_needed_lie_between_points(load: Load) -> None:
    curve = {"random": {"10": 0.5, "20": 0.6, "30": 0.7}, "badge": {"10": 0.5, "20": 0.7, "30": 0.65}}
    np.testing.assert_allclose(load("doctor").needed([curve], "badge"), [(10, 0.5, 10), (20, 0.6, 15), (30, 0.7, 20)])


def test_pairs_of_random_vectors(load: Load) -> None:
    found = load("doctor")._alone(3000)
    assert found["vectors"] == 3000
    assert 0 <= found["more GiB"] < 1
