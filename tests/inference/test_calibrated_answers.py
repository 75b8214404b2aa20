"""Calibrated probabilities, label sets and the unknown: from Python, from a run's folder and from the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LABELS, make_classifier
from PIL import Image
from test_zero_shot import make_clip

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.inference.calibrate import calibrate_on, calibrate_run
from visionzoo.models.bundle import ModelConfig, read_config, save_bundle
from visionzoo.models.calibration import Calibration
from visionzoo.runs.lock import FolderInUseError


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images of three classes; labels have little to do with what the models see."""
    folder = tmp_path_factory.mktemp("labelled") / "photos"
    rng = np.random.default_rng(0)
    for i in range(120):
        path = folder / LABELS[i % 3] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(60 * (i % 3) + rng.normal(60, 60, (32, 32, 3)) + rng.integers(0, 80, 3), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def files(folder: Path) -> tuple[list[Path], list[str]]:
    paths = sorted(folder.rglob("*.png"))
    return paths, [path.parent.name for path in paths]


def logits_of(classifier: vz.ImageClassifier, folder: Path) -> torch.Tensor:
    return classifier.probabilities(folder).double().log()  # but for a constant in each row


def test_temperature_sets_and_unknown(labelled: Path) -> None:
    classifier = vz.ImageClassifier.from_model(make_classifier(), LABELS)
    paths, labels = files(labelled)
    raw = classifier.probabilities(paths)
    logits, targets = logits_of(classifier, labelled), torch.tensor([LABELS.index(label) for label in labels])
    found = classifier.calibrate(paths, labels, batch_size=50)
    expected = Calibration.fit(logits, targets)
    assert found.images == 120
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-4)
    calibrated = classifier.probabilities(paths)
    assert torch.allclose(calibrated.double(), (logits / found.temperature).softmax(1), atol=1e-5)
    assert not torch.allclose(calibrated, raw, atol=1e-3)

    answers = classifier.predict(paths, sets=0.8, top_k=1)
    inside = found.label_sets(calibrated, 0.8)
    for answer, row, members in zip(answers, calibrated, inside, strict=True):
        assert [label for label, _ in answer] == [LABELS[k] for k in row.argsort(descending=True) if members[k]]
    held = [label in dict(answer) for label, answer in zip(labels, answers, strict=True)]
    assert 0.8 <= sum(held) / 120 < 0.82  # these are the images of the calibration

    best = calibrated.max(1).values
    told = classifier.predict(paths, unknown_rate=0.1)
    odd = [answer[0][0] == "unknown" for answer in told]
    assert 0.08 <= sum(odd) / 120 <= 0.1
    assert max(best[torch.tensor(odd)]) <= min(best[~torch.tensor(odd)])
    first = odd.index(True)
    assert told[first][0][1] == pytest.approx(1 - float(best[first]))
    both = classifier.predict(paths, sets=0.8, unknown_rate=0.1)
    assert [a[1:] if o else a for a, o in zip(both, odd, strict=True)] == answers
    again = classifier.calibrate(paths, targets.tolist())  # labels by their places
    assert (again.images, again.levels) == (found.images, found.levels)
    assert again.temperature == pytest.approx(found.temperature, rel=1e-5)  # networks do not round alike every time
    assert again.sets == pytest.approx(found.sets, abs=1e-5)
    assert again.known == pytest.approx(found.known, abs=1e-5)


def test_a_run_is_calibrated_on_a_folder(run: Path, labelled: Path) -> None:
    before = json.loads((run / "config.json").read_text())
    raw = vz.ImageClassifier.load(run, device="cpu")
    assert raw.calibration is None
    paths, labels = files(labelled)
    logits = logits_of(raw, labelled)
    expected = Calibration.fit(logits, torch.tensor([LABELS.index(label) for label in labels]))
    found = calibrate_run(run, str(labelled), device="cpu")
    assert found.unreadable == ()
    assert found.calibration.temperature == pytest.approx(expected.temperature, rel=1e-4)
    assert found.calibration.sets == pytest.approx(expected.sets, abs=1e-5)
    after = json.loads((run / "config.json").read_text())
    assert after.pop("calibration") == found.calibration.to_dict()
    assert after == before
    assert sorted(p.name for p in run.iterdir() if p.name != ".lock") == ["config.json", "model.safetensors"]
    assert vz.ImageClassifier.load(run, device="cpu").calibration == found.calibration
    plain = vz.ImageClassifier.load(run, device="cpu", calibrated=False)
    assert torch.equal(plain.probabilities(paths[:3]), raw.probabilities(paths[:3]))
    again = calibrate_run(run, str(labelled), device="cpu")  # by the raw logits, whatever was there
    assert again == found


def test_a_run_that_cannot_be_calibrated_stays_as_it_is(
    run: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "config.json").read_bytes()
    others = tmp_path / "others"
    for label in ("cat", "horse"):
        shutil.copytree(labelled / "cat", others / label)
    with pytest.raises(ValueError, match="knows no class 'horse'; it knows cat, dog, zebra"):
        calibrate_run(run, str(others), device="cpu")
    few = tmp_path / "few"
    for label in ("cat", "dog"):
        (few / label).mkdir(parents=True)
        shutil.copy(next((labelled / label).iterdir()), few / label)
    with pytest.raises(ValueError, match="at least 20 labelled images, not 2"):
        calibrate_run(run, str(few), device="cpu")
    with pytest.raises(ValueError, match="no folder that a calibration could be kept in"):
        calibrate_run("timm:resnet18.a1_in1k", str(labelled))

    def taken(folder: Path) -> None:
        raise FolderInUseError(f"{folder} is in use")

    monkeypatch.setattr("visionzoo.inference.calibrate.FolderLock", taken)
    with pytest.raises(FolderInUseError):
        calibrate_run(run, str(labelled), device="cpu")
    assert (run / "config.json").read_bytes() == before


def test_promises_that_cannot_be_kept_are_refused_before_an_image_is_read(labelled: Path) -> None:
    missing = labelled / "missing.png"
    raw = vz.ImageClassifier.from_model(make_classifier(), LABELS, name="pets")
    for asked in ({"sets": 0.9}, {"unknown_rate": 0.05}):
        with pytest.raises(
            ValueError, match=r"needs a calibration, and pets has none: visionzoo calibrate RUN --data\.path"
        ):
            raw.predict(missing, **asked)
    several = vz.ImageClassifier.from_model(make_classifier(), LABELS, multi_label=True, name="tags")
    with pytest.raises(ValueError, match="sets is for one label an image, and tags scores each label by itself"):
        several.predict(missing, sets=0.9)
    paths, labels = files(labelled)
    with pytest.raises(ValueError, match="a calibration is for one label an image"):
        several.calibrate(paths, labels)
    with pytest.raises(ValueError, match="119 labels do not fit 120 images"):
        raw.calibrate(paths, labels[1:])
    with pytest.raises(ValueError, match="'horse' is none of the labels: cat, dog, zebra"):
        raw.calibrate(paths, ["horse", *labels[1:]])
    with pytest.raises(ValueError, match="3 is none of the labels"):
        raw.calibrate(paths, [3] * 120)
    raw.calibrate(paths, labels)
    with pytest.raises(ValueError, match=r"sets=0\.999 is more than 120 calibration images can tell"):
        raw.predict(missing, sets=0.999)
    with pytest.raises(ValueError, match=r"unknown_rate=1\.5 must be above 0 and below 1"):
        raw.predict(missing, unknown_rate=1.5)
    raw.unknown_label = "dog"
    with pytest.raises(ValueError, match="a label is called 'dog'"):
        raw.predict(missing, unknown_rate=0.1)


def zero_shot(labels: Sequence[str] = LABELS, **options: Any) -> vz.ZeroShotClassifier:
    return vz.ZeroShotClassifier(make_clip(), labels, "a {}.", **options)


@pytest.mark.long
def test_zero_shot(labelled: Path) -> None:
    zs, paths = zero_shot(["zebra", "Dog", "cat", "a plane"]), files(labelled)[0]
    raw = zs.probabilities(paths)
    found = calibrate_on(zs, str(labelled)).calibration
    assert zs.calibration == found
    targets = torch.tensor([{"zebra": 0, "dog": 1, "cat": 2}[path.parent.name] for path in paths])
    expected = Calibration.fit(raw.double().log(), targets)
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-4)
    held = [
        path.parent.name in [label.lower() for label, _ in answer]
        for path, answer in zip(paths, zs.predict(paths, sets=0.9), strict=True)
    ]
    assert 0.9 <= sum(held) / 120 < 0.95
    assert zs.calibrate(paths, [zs.labels[k] for k in targets.tolist()]) == found
    zs.add("a bird")  # which changes what the probabilities are of
    assert zs.calibration is None
    with pytest.raises(ValueError, match=r"needs a calibration, and .* call calibrate\(images, labels\)"):
        zs.predict(paths, sets=0.9)
    judged = zero_shot(unknown=0.5)
    calibrate_on(judged, str(labelled))
    with pytest.raises(ValueError, match=r"unknown=0\.5 or unknown_rate=0\.1, not both"):
        judged.predict(paths, unknown_rate=0.1)
    with pytest.raises(ValueError, match="a calibration is for one label an image"):
        calibrate_on(zero_shot(multi_label=True), str(labelled))


def test_commands(run: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(next((labelled / "cat").iterdir()))
    assert main(["predict", str(run), image, "--sets", "0.9"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: sets=0.9 needs a calibration, and run has none: visionzoo calibrate"
    )
    assert main(["calibrate", str(run), "--data.path", str(labelled), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("calibrated on 120 images: temperature ")
    assert main(["calibrate", str(run), "--data.path", str(labelled), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 120
    options = ["--sets", "0.9", "--unknown-rate", "0.05", "--json", "--device", "cpu"]
    assert main(["predict", str(run), image, *options]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    (expected,) = vz.ImageClassifier.load(run, device="cpu").predict(image, sets=0.9, unknown_rate=0.05)
    assert [p["label"] for p in record["predictions"]] == [label for label, _ in expected]
    assert read_config(run).calibration is not None


@pytest.mark.long
def test_the_zero_shot_command(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = make_clip()
    save_bundle(
        model, ModelConfig(task="clip", architecture=model.architecture, preprocess=model.preprocess), tmp_path / "clip"
    )
    images = sorted((labelled / "dog").iterdir())
    command = ["zeroshot", *map(str, images), "--labels", "zebra,dog,cat", "--model", str(tmp_path / "clip")]
    promised = ["--sets", "0.8", "--unknown-rate", "0.1"]
    assert main([*command, *promised]) == 2
    assert "need labelled images of the same kind: --calibrate PATH" in capsys.readouterr().err
    assert main([*command, *promised, "--calibrate", str(labelled), "--device", "cpu", "--json"]) == 0
    said = capsys.readouterr()
    assert "calibrated on 120 images: temperature" in said.err
    zs = vz.ZeroShotClassifier(model, ["zebra", "dog", "cat"], "a photo of a {}.")
    calibrate_on(zs, str(labelled))
    for record, expected in zip(json.loads(said.out), zs.predict(images, sets=0.8, unknown_rate=0.1), strict=True):
        assert [p["label"] for p in record["predictions"]] == [label for label, _ in expected]
    assert main(["zeroshot", "--data.path", str(labelled), "--model", str(tmp_path / "clip"), "--calibrate", "x",
                 *promised]) == 2  # fmt: skip
    assert "leave --data.path out" in capsys.readouterr().err
