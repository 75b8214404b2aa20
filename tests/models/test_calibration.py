"""What a calibration promises, what it refuses, and that it survives the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import visionzoo as vz
from visionzoo.metrics.calibration import calibration_error
from visionzoo.models.bundle import ModelConfig, read_config, save_bundle, write_calibration
from visionzoo.models.calibration import LEAST, LEVELS, Calibration, cross_fitted_error


def make(n: int = 600, k: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are three times too sure."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator)
    return 3 * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_sets_and_unknown_of_other_images() -> None:
    calibration = Calibration.fit(*make(4000))
    logits, labels = make(4000, seed=1)
    probabilities = (logits / calibration.temperature).softmax(1)
    assert calibration_error(probabilities, labels) < calibration_error(logits.softmax(1), labels) / 2
    for level in (0.7, 0.9, 0.995):
        held = calibration.label_sets(probabilities, level).gather(1, labels[:, None])
        assert float(held.float().mean()) == pytest.approx(level, abs=0.02)
    assert float(calibration.unknown(probabilities, 0.1).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_a_level_between_two_is_answered_by_the_next() -> None:
    calibration = Calibration.fit(*make())
    probabilities = make(seed=1)[0].softmax(1)
    assert torch.equal(calibration.label_sets(probabilities, 0.855), calibration.label_sets(probabilities, 0.86))
    assert torch.equal(calibration.label_sets(probabilities, 0.1), calibration.label_sets(probabilities, 0.5))
    assert torch.equal(calibration.unknown(probabilities, 0.1), calibration.unknown(probabilities, 1 - 0.9))


def test_what_the_images_cannot_tell_is_refused() -> None:
    calibration = Calibration.fit(*make(50))
    assert calibration.levels[-1] == 0.98  # 50 / 51
    probabilities = make(3)[0].softmax(1)
    with pytest.raises(ValueError, match=r"sets=0\.99 is more than 50 calibration images can tell: ask at most 0\.98"):
        calibration.label_sets(probabilities, 0.99)
    with pytest.raises(ValueError, match=r"unknown_rate=0\.01 .* at least 0\.02, or calibrate on 99 or more"):
        calibration.unknown(probabilities, 0.01)
    assert Calibration.fit(*make(99)).levels[-1] == 0.99
    with pytest.raises(ValueError, match=r"sets=0\.9999 is more than 50 calibration images can tell"):
        calibration.label_sets(probabilities, 0.9999)
    for wrong in (0, 1, 90):
        with pytest.raises(ValueError, match=f"sets={wrong} must be above 0 and below 1"):
            calibration.label_sets(probabilities, wrong)
    with pytest.raises(ValueError, match=f"at least {LEAST} labelled images, not {LEAST - 1}"):
        Calibration.fit(*make(LEAST - 1))


def test_the_error_is_judged_by_the_other_half() -> None:
    logits, labels = make(30, k=2)
    from visionzoo.metrics.calibration import fit_temperature

    probabilities = torch.empty(30, 2, dtype=torch.float64)
    for i in range(30):
        others = [j for j in range(30) if j % 2 != i % 2]
        temperature = fit_temperature(logits[others], labels[others], smoothing=1 / 16)
        probabilities[i] = (logits[i].double() / temperature).softmax(0)
    assert cross_fitted_error(logits, labels) == pytest.approx(calibration_error(probabilities, labels), abs=1e-6)


def test_without_a_mistake_it_does_not_promise_certainty() -> None:
    labels = torch.arange(60) % 3
    calibration = Calibration.fit(5 * torch.nn.functional.one_hot(labels).float(), labels)
    best = (torch.tensor([[5.0, 0.0, 0.0]]) / calibration.temperature).softmax(1).max()
    assert 0.95 < float(best) < 0.995


def test_round_trip_and_a_calibration_put_in_later(tmp_path: Path) -> None:
    model = vz.create_classifier("vit_nano_patch4_32", 5)
    config = ModelConfig(task="classify", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path)
    path = tmp_path / "config.json"
    assert "calibration" not in json.loads(path.read_text())
    assert read_config(tmp_path).calibration is None
    path.write_text(json.dumps({**json.loads(path.read_text()), "imports": []}))
    calibration = Calibration.fit(*make())
    assert calibration.levels == LEVELS[: len(calibration.levels)]
    write_calibration(tmp_path, calibration)
    assert read_config(tmp_path).calibration == calibration
    assert json.loads(path.read_text())["imports"] == []
    assert read_config(tmp_path) == ModelConfig.from_dict({**config.to_dict(), "calibration": calibration.to_dict()})
