"""What a plan of ``visionzoo fit`` is made with: precision, speed, and the size at which there is time to train."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.auto import recipes, speed
from visionzoo.auto import session as sessions
from visionzoo.auto.result import Request
from visionzoo.auto.session import Session
from visionzoo.auto.tries import Tries
from visionzoo.models.bundle import ModelConfig, save_bundle

CPU = torch.device("cpu")
NANO = "vit_nano_patch4_32"


def write_photographs(folder: Path, count: int, pixels: int) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 255, (pixels, pixels, 3)).astype(np.uint8))
            image.save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A pretrained network that takes any size."""
    torch.manual_seed(0)
    model = vz.create_classifier(NANO, 3, image_size=224).eval()
    config = ModelConfig(task="classify", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path / "weights")
    return tmp_path / "weights"


def opened(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, *, minutes: float, at_224: float, image_size=None
) -> Session:
    """A session on a machine that looks at so many images of 224 pixels a second, and at four times as many of 112."""

    def pretend(stream, source, batch) -> float:
        return at_224 * (224 / stream.transform.preprocess.image_size[0]) ** 2

    monkeypatch.setattr(sessions, "images_per_second", pretend)
    monkeypatch.setattr(sessions, "training_precision", lambda *_: ("32-true", 1.0))
    request = Request(path=str(folder), minutes=minutes, weights=str(weights), image_size=image_size)
    return Session.open(request, CPU, None, time.monotonic())


def size(session: Session) -> int:
    return session.network.model.preprocess.image_size[0]


def test_photographs_become_smaller_where_only_that_leaves_time_to_train(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # 240 images: 192 to learn from, of which 38 choose. Three epochs of all weights are some 1,600 forward passes
    photographs = write_photographs(tmp_path / "large", 120, 100)

    def at(minutes: float, **options) -> Session:
        return opened(photographs, weights, monkeypatch, minutes=minutes, at_224=2.0, **options)

    assert size(at(20)) == 224  # there is time
    smaller = at(8)
    assert (size(smaller), smaller.too_large, smaller.train_limit) == (112, 224, None)
    smaller.say_plan()
    said = capsys.readouterr().out
    assert "shown at 112 pixels in place of 224, which leave no time for training; --image-size 224 keeps them" in said
    assert size(at(8, image_size=224)) == 224  # a person's word
    assert size(at(1.5)) == 224  # nor is there time to train at 112: a finer look is worth more
    assert at(1.5).too_large is None


def test_small_images_become_smaller_for_their_features(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_photographs(tmp_path / "small", 120, 32)
    assert size(opened(small, weights, monkeypatch, minutes=8, at_224=2.0)) == 224  # 1.6 of 8 minutes
    assert size(opened(small, weights, monkeypatch, minutes=3, at_224=2.0)) == 112


def test_images_too_few_to_choose_by_stay_large(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = write_photographs(tmp_path / "few", 12, 100)
    assert size(opened(few, weights, monkeypatch, minutes=0.5, at_224=2.0)) == 224


def test_one_method_gets_enough_epochs_before_others_get_time() -> None:
    def epochs(minutes_left: float, method: recipes.Method = "full") -> int:
        session = SimpleNamespace(left=minutes_left, dev=(np.zeros(1600), np.zeros(400)))
        tries = Tries(session, heads=None, folder=None, resume_command="", kept="linear")  # type: ignore[arg-type]
        return tries._epochs(method, parts=3, speed=100.0)

    one = recipes.minutes("full", 1, 1600, 400, 100.0)
    assert epochs(3 * 10.01 * one) == 10  # all that are wanted, and the same for two others
    assert epochs(3 * 8.01 * one) == 8  # enough
    assert epochs(3 * 7 * one) == 10  # not enough in a third, so half of the time
    assert epochs(7.5 * one) == 7  # everything for one
    assert epochs(1.9 * one) == 0  # not to be begun
    one = recipes.minutes("scratch", 1, 1600, 400, 100.0)
    assert epochs(3 * 5.01 * one, "scratch") == 5


def test_the_precision_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vz.create_classifier(NANO, 3, image_size=32).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def machine(float32: float, bfloat16: float, step: float = 0.6) -> None:
        """One on which a product takes so long in each, and a step in bfloat16 that share of one in float32."""

        def quickest(work) -> float:
            work()
            return next(times)

        times = iter((float32, bfloat16, 1.0, step))
        monkeypatch.setattr(speed, "_quickest", quickest)

    machine(1.0, 10.0)
    assert speed.training_precision(model, CPU) == ("32-true", 1.0)
    machine(1.0, 0.9)
    assert speed.training_precision(model, CPU) == ("32-true", 1.0)
    machine(1.0, 0.2)
    assert speed.training_precision(model, CPU) == ("bf16-mixed", pytest.approx(1 / 0.6))
    machine(1.0, 0.2, step=1.1)
    assert speed.training_precision(model, CPU) == ("32-true", 1.0)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
