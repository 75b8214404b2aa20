"""Objects that several threads share: each thread gets its own image's answer, and nothing is lost."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam_twins import NANO, shake
from test_zero_shot import make_clip

import visionzoo as vz
from visionzoo.models.classifier import Classifier
from visionzoo.models.sam import Sam

THREADS, ROUNDS = 8, 12


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads take turns a thousand times as often, so that a race shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def sam() -> Sam:
    model = vz.create_sam(NANO, image_size=32, decoder_dim=32)
    shake(model, 0.1)
    return model.eval()


def at_once(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """What ``work(0)``, ``work(1)`` ... give, all begun together."""
    barrier = threading.Barrier(count)

    def one(i: int) -> Any:
        barrier.wait()
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def pictures(count: int = THREADS) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (24 + 5 * i, 31, 3), dtype=np.uint8) for i in range(count)]


CLICK = {"point_coords": np.array([[9, 9]]), "point_labels": np.array([1])}


def test_answers_by_value(sam: Sam, survived: Callable[..., None]) -> None:
    predictor, images = vz.SamPredictor(sam), pictures()
    alone = []
    for image in images:
        predictor.set_image(image)
        alone.append(predictor.predict(**CLICK))

    def work(i: int) -> int:
        good = 0
        for _ in range(ROUNDS):
            answer = predictor.predict(**CLICK, image=predictor.embed_image(images[i]))
            good += all(np.array_equal(a, b) for a, b in zip(answer, alone[i], strict=True))
        return good

    assert at_once(work) == [ROUNDS] * THREADS
    survived("masks asked of one `SamPredictor` by 8 threads: those of the thread's own image", THREADS * ROUNDS)


def test_an_image_that_another_thread_has_set_is_no_answer(sam: Sam) -> None:
    """By Meta's interface the image is the predictor's; an answer is right, or an error."""
    predictor, images = vz.SamPredictor(sam), pictures()
    alone = [predictor.predict(**CLICK, image=predictor.embed_image(image))[2] for image in images]

    def work(i: int) -> set[str]:
        seen = set()
        for _ in range(ROUNDS):
            predictor.set_image(images[i])
            try:
                seen.add("right" if np.array_equal(predictor.predict(**CLICK)[2], alone[i]) else "wrong")
            except RuntimeError as error:
                seen.add("refused" if "another thread has set an image" in str(error) else str(error))
        return seen

    assert set().union(*at_once(work)) <= {"right", "refused"}


def test_an_image_may_be_handed_to_another_thread(sam: Sam) -> None:
    """A page in the browser sets it in one thread and asks in the next."""
    predictor, (image, other, *_) = vz.SamPredictor(sam), pictures()
    alone = predictor.predict(**CLICK, image=predictor.embed_image(image))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(predictor.set_image, image).result()
        answer = predictor.predict(**CLICK)
        assert all(np.array_equal(a, b) for a, b in zip(answer, alone, strict=True))
        predictor.set_image(other)
        with pytest.raises(RuntimeError, match="another thread has set an image"):
            pool.submit(predictor.predict, **CLICK).result()
        for same in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
            assert np.array_equal(same.predict(**CLICK)[2], predictor.predict(**CLICK)[2])
            same.reset_image()
            with pytest.raises(RuntimeError, match="no image is set"):
                same.predict(**CLICK)


def test_mask_generator(sam: Sam) -> None:
    options = {"points_per_side": 4, "pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1.0}
    generator, images = vz.MaskGenerator(sam, **options), pictures()

    def masks(i: int) -> list[tuple[Any, ...]]:
        return [(m["segmentation"].tobytes(), m["predicted_iou"], *m["bbox"]) for m in generator.generate(images[i])]

    alone = [masks(i) for i in range(THREADS)]
    assert any(alone)
    assert at_once(masks) == alone


def test_image_classifier(model: Classifier) -> None:
    classifier, images = vz.ImageClassifier.from_model(model, ["a", "b", "c"]), pictures()
    alone = [classifier.probabilities(image) for image in images]
    assert all(map(torch.equal, at_once(lambda i: classifier.probabilities(images[i])), alone))


def test_labels_that_threads_add_are_all_there(survived: Callable[..., None]) -> None:
    classifier, each = vz.ZeroShotClassifier(make_clip(), ["a first thing", "a second thing"], "a photo of a {}."), 10
    image = pictures(1)[0]

    def work(i: int) -> None:
        for k in range(each):
            classifier.add(f"thing {i} {k}")
            found = classifier.report([image], top_k=500).predictions[0]
            assert found is not None
            assert abs(sum(p for _, p in found) - 1) < 1e-4
            if k % 2:
                classifier.remove(f"thing {i} {k}")

    at_once(work)
    wanted = {f"thing {i} {k}" for i in range(THREADS) for k in range(0, each, 2)}
    assert set(classifier.labels) == wanted | {"a first thing", "a second thing"}
    fresh = vz.ZeroShotClassifier(classifier.model, classifier.labels, "a photo of a {}.")
    torch.testing.assert_close(classifier.text_embeddings, fresh.text_embeddings, rtol=0, atol=1e-5)
    survived("labels added to one `ZeroShotClassifier` by 8 threads, none lost", THREADS * each)


def test_text_embeddings_on_the_disk_are_all_there(tmp_path: Path) -> None:
    clip = make_clip()
    classifier = vz.ZeroShotClassifier(clip, ["a first thing", "a second thing"], "a {}.", cache_dir=tmp_path)
    at_once(lambda i: [classifier.add(f"thing {i} {k}") for k in range(3)])
    again = vz.ZeroShotClassifier(clip, classifier.labels, "a {}.", cache_dir=tmp_path)
    assert again._cache.encoded == 0


def test_a_search_never_mixes_two_folders(photos: Path, tmp_path: Path) -> None:
    search = vz.ImageSearch(make_clip(), cache_dir=tmp_path / "cache", batch_size=4)
    folders = [photos, photos / "deep"]
    for folder in folders:
        search.index(folder)

    def work(i: int) -> None:
        for k in range(6):
            if i < 2:
                search.index(folders[(i + k) % 2])
            else:
                found = search.find("a car")
                assert all(Path(match.path).is_file() for match in found)
                assert len(found) in (2, 6)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at_once(work)


def test_copies_have_locks_of_their_own() -> None:
    classifier = vz.ZeroShotClassifier(make_clip(), ["a first thing", "a second thing"], "a {}.")
    for other in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        other.add("a third thing")
        assert (len(other.labels), len(classifier.labels)) == (3, 2)
