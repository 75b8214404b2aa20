"""What a run records for its page: a bounded choice of pictures, and when each image was learned."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_run import NamedSource, answers, evaluated, learned
from PIL import Image

from visionzoo.metrics.calibration import calibration_error
from visionzoo.runs.answers import TOP, read_answers
from visionzoo.runs.gallery import GalleryAbout, GalleryPicture, read_gallery, sheet_step, write_gallery
from visionzoo.tasks import pictures, record_answers
from visionzoo.tasks.classify_evaluation import EvaluationResults
from visionzoo.tasks.engine.learning import Learning
from visionzoo.tasks.pictures import PictureChoice, as_webp, side_by_side, small_pictures


def chosen(order: torch.Tensor, size: int, classes: int = 10, wanted: frozenset[int] = frozenset()) -> list[int]:
    logits, labels = answers(len(order), classes)
    choice = PictureChoice(wanted)
    for index in order.split(size):
        choice.add(logits[index], labels[index], torch.zeros(len(index), 3, 4, 4, dtype=torch.uint8), index)
    return [kept.position for kept in choice.finish()]


def test_few_images_are_all_kept_whatever_the_batches() -> None:
    whole = chosen(torch.arange(300), 300)
    assert sorted(whole) == list(range(300))
    assert chosen(torch.arange(300).flip(0), 7) == whole


def test_of_each_pair_the_most_telling_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PER_PAIR", 3)
    monkeypatch.setattr(pictures, "LISTED", 0)
    logits, labels = answers(2000, 4)
    sure, predicted = logits.softmax(1).max(1)
    kept = chosen(torch.arange(2000), 64, 4)
    for label in range(4):
        for answer in range(4):
            here = ((labels == label) & (predicted == answer)).nonzero()[:, 0]
            best = here[sure[here].argsort(descending=label != answer)][:3]
            assert set(best.tolist()) == {p for p in kept if labels[p] == label and predicted[p] == answer}


def test_a_thousand_classes_and_many_images_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST", 100)
    kept = chosen(torch.arange(3000), 128, 1000, wanted=frozenset({17, 1234}))
    assert len(kept) <= 102
    assert {17, 1234} <= set(kept)
    logits, labels = answers(3000, 1000)
    wrong = (logits.argmax(1) != labels)[kept]
    assert wrong.sum() > 50  # mistakes before what is right


def test_pictures_are_small_and_keep_their_pixels() -> None:
    big = torch.randint(256, (2, 3, 300, 150), dtype=torch.uint8)
    assert [p.shape for p in small_pictures(big)] == [(96, 48, 3)] * 2
    assert small_pictures(big[:, :1])[0].shape == (96, 48, 1)
    exact = small_pictures(torch.arange(3 * 16 * 16).reshape(1, 3, 16, 16).byte())[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(as_webp(exact)))), exact)
    joined = Image.open(io.BytesIO(side_by_side([exact, exact[:, :, :1], exact[:, :, :2]])))
    assert joined.size == (3 * 128 + 12, 128)


def test_when_each_image_was_learned() -> None:
    learning = Learning()
    right = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1]]).bool()
    position = torch.tensor([3, 5, 8, 13])
    for epoch, row in enumerate(right[:2], 1):
        learning.take(position, row, epoch)
    again = Learning()
    again.load_state_dict(learning.state_dict())  # a resumed run
    again.take(position, right[2], 3)
    first, until, times = again.of(torch.tensor([3, 5, 8, 13, 4]))
    assert first.tolist() == [1, 2, 0, 1, -1]
    assert until.tolist() == [2, 1, 3, 0, -1]
    assert times.tolist() == [2, 2, 0, 3, -1]
    assert again.slowest(1) == {3}
    assert again.slowest(9) == {3, 5}
    again.take(position[1:], right[2, 1:], 4)  # an image that could not be read is not wrong
    assert again.of(position)[1].tolist() == [2, 1, 4, 0]


def test_more_images_than_rows_are_drawn_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_answers, "ROWS", 50)
    monkeypatch.setattr(pictures, "LISTED", 5)
    monkeypatch.setattr(pictures, "MOST", 20)
    logits, labels = answers(400, 10)
    path = tmp_path / "answers.parquet"
    results = evaluated(logits, labels)
    options = {"source": NamedSource(), "calibration": results.calibration, "learning": learned(logits, labels)}
    record_answers.record_answers(path, results, "abcdefghij", stage="val", **options)
    found = read_answers(path)
    assert len(found.rows["label"]) == 50
    assert found.about.images == 400 == sum(count for _, _, count in found.about.matrix)
    assert sum(picture is not None for picture in found.rows["picture"]) == 20
    assert 100 < np.mean(found.rows["position"]) < 300  # not the first ones
    for row, position in enumerate(found.rows["position"]):
        best = logits[position].argsort(descending=True)[:TOP].tolist()
        assert found.rows["answers"][row] == best
        assert found.rows["sample"][row] == f"val/{position:06d}.jpg"
        expected = (logits[position].double() / found.about.temperature).softmax(0)[best]
        assert found.rows["probabilities"][row] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_diverged_model_leaves_no_answers_behind(tmp_path: Path) -> None:
    logits, labels = answers(50, 10)
    path = tmp_path / "answers.parquet"
    options = {"stage": "val", "source": None}
    results = evaluated(logits, labels)
    record_answers.record_answers(path, results, "abcdefghij", **options)
    assert path.is_file()
    assert results.answers is not None
    broken = EvaluationResults(results.counts, answers=results.answers._replace(logits=logits * torch.nan))
    record_answers.record_answers(path, broken, "abcdefghij", **options)
    assert not path.exists()


def test_a_gallery_is_read_as_it_was_written(tmp_path: Path) -> None:
    kept = [GalleryPicture("one", "a \udc80 cat", [("✓ a cat", "right"), ("", "")], b"RIFF", 3)]
    curves = (("images", ((1.0, 2.0), (3.0, 4.0))),)
    write_gallery(tmp_path / "g.parquet", kept, GalleryAbout(section="Cats", curves_title="Share", curves=curves))
    found = read_gallery(tmp_path / "g.parquet")
    assert found.about.curves == curves
    assert found.pictures == [kept[0]._replace(alt="a \\udc80 cat")]
    with pytest.raises(ValueError, match="no column"):
        read_answers(tmp_path / "g.parquet")
    assert [sheet_step(Path(p)) for p in ("step_0000500.png", "step_.png", "masks.png")] == [500, -1, -1]


def test_a_temperature_is_judged_by_images_that_it_was_not_fitted_on(tmp_path: Path) -> None:
    logits, labels = answers(400, 10)
    results, path = evaluated(logits, labels), tmp_path / "answers.parquet"
    own = results.calibration
    assert own is not None
    for given in (own, replace(own, images=399), replace(own, temperature=3.0)):
        options = {"stage": "val", "source": None, "calibration": given}
        record_answers.record_answers(path, results, "abcdefghij", **options)
        about = read_answers(path).about
        assert about.cross_fitted == (given is own)
        expected = own.error[1]
        if given is not own:
            expected = calibration_error((logits.double() / given.temperature).softmax(1), labels)
        assert about.calibration_error == pytest.approx((own.error[0], expected))
        again = [sum(n / 400 * abs(sure - right) for n, sure, right in bins) for bins in about.reliability]
        assert again == pytest.approx(about.calibration_error, abs=1e-6)
