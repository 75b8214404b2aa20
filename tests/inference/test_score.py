"""Accuracy and confusion matrix of a zero-shot classifier on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_zero_shot import make_clip

import visionzoo as vz
from visionzoo.inference.score import LabelledScore, class_labels, label_places, open_labelled, score

COLOURS = {"deep_red": (200, 20, 20), "green": (20, 160, 30), "blue": (20, 40, 220)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def classifier(labels: Sequence[str]) -> vz.ZeroShotClassifier:
    return vz.ZeroShotClassifier(make_clip(), labels, "a {}.")


def expected(zs: vz.ZeroShotClassifier, folder: Path, place: dict[str, int], unknown: float = 0.0) -> np.ndarray:
    k = len(zs.labels) + bool(unknown)
    matrix = np.zeros((k, k), dtype=int)
    for name, true in place.items():
        for row in zs.probabilities(folder / name):
            named = int(row.argmax()) if float(row.max()) >= unknown else k - 1
            matrix[true, named] += 1
    return matrix


def test_counts_are_those_of_single_answers(folder: Path) -> None:
    source = open_labelled(str(folder))
    assert class_labels(source) == ("blue", "deep red", "green")
    zs = classifier(["Green", "deep red", "a zebra", "blue"])  # another order, and one that is no class
    found = score(zs, source, batch_size=5)
    place = {"green": 0, "deep_red": 1, "blue": 3}
    assert np.array_equal(found.matrix, expected(zs, folder, place))
    assert found.labels == zs.labels
    assert found.images == 12
    assert found.accuracy == pytest.approx(np.trace(found.matrix) / 12)
    threshold = float(zs.probabilities(folder).amax(1).median()) + 1e-4
    judged = score(zs, source, unknown=threshold)
    assert judged.labels == (*zs.labels, "unknown")
    assert np.array_equal(judged.matrix, expected(zs, folder, place, threshold))
    assert judged.matrix[:, -1].sum() > 0


def test_labels_that_differ_in_case_alone_are_two() -> None:
    place = label_places(["A", "a", "Bee"])
    assert [place(name) for name in ("A", "a", "Bee", "bee", "BEE", "b")] == [0, 1, 2, 2, 2, None]
    assert label_places(["STRASSE", "strasse"])("Strasse") is None


def test_words_for_codes(folder: Path) -> None:
    source = open_labelled(str(folder))
    ours = score(classifier(["blue", "deep red", "green"]), source)
    words = score(classifier(["an ocean", "a cherry", "grass"]), source)
    assert words.labels == ("an ocean", "a cherry", "grass")
    assert words.matrix.sum(1).tolist() == ours.matrix.sum(1).tolist() == [4, 4, 4]
    for labels in (["blue", "green"], ["blue", "grass", "green"]):
        with pytest.raises(ValueError, match=r"no label for 1 of the 3 classes: 'deep red'"):
            score(classifier(labels), source)


def test_unreadable_images_are_listed_and_left_out(folder: Path) -> None:
    (folder / "blue" / "0.png").write_bytes(b"no image")
    found = score(classifier(["blue", "deep red", "green"]), open_labelled(str(folder)))
    assert found.images == 11
    assert [u.name for u in found.unreadable] == [str(folder / "blue" / "0.png")]
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 12 labelled images"):
        score(classifier(["blue", "deep red", "green"]), open_labelled(str(folder)))


def test_text() -> None:
    few = LabelledScore(labels=("cat", "a dog"), matrix=np.array([[1200, 3], [0, 1]]))
    assert few.to_text().splitlines() == [
        "accuracy 99.75 % of 1,204 images, 2 labels (chance 50.00 %)",
        "",
        "true \\ named    cat  a dog",
        "cat           1,200      3",
        "a dog             0      1",
    ]
    matrix = np.eye(20, dtype=int)
    matrix[3, 7], matrix[7, 3] = 2, 5
    many = LabelledScore(labels=tuple(f"l{i}" for i in range(20)), matrix=matrix)
    assert many.confusions() == [("l7", "l3", 5), ("l3", "l7", 2)]
    assert many.to_text().splitlines()[-2:] == ["       5  l7 named l3", "       2  l3 named l7"]


def test_data_without_one_label_each(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "list.jsonl").write_text(
        "\n".join(f'{{"image": "data/blue/{i}.png", "label": ["a", "b"]}}' for i in range(3))
    )
    with pytest.raises(ValueError, match="several labels per image"):
        open_labelled(str(tmp_path / "list.jsonl"))
