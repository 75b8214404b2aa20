"""A classifier out of visionzoo: the folder, its proof, and what runs it without torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.data.sources.open import open_data
from visionzoo.export import write
from visionzoo.export.feeds import data_images, proof_images
from visionzoo.export.folder import SUMS_FILE, checksum, read_spec
from visionzoo.export.to_onnx import OnnxRunner
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.signals import TRY_AGAIN

#: Run before a script: whoever imports one of these fails, and says so.
BLOCK = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "visionzoo", "onnx", "torchvision", "timm"):
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(folder: Path, images: list[Path], work: Path) -> list[str]:
    """What ``predict.py`` of a folder prints of images, in a process without torch."""
    command = [sys.executable, "-c", BLOCK, str(folder / "predict.py"), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.long
def test_the_script_without_torch_says_what_visionzoo_says(
    exported: Path, run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    assert len((exported / "predict.py").read_text().splitlines()) <= 60
    images = sorted(photos.iterdir())
    lines = [line.split("\t") for line in run_script(exported, images, tmp_path)]
    wanted = ImageClassifier.load(run_folder, "cpu").predict(images, top_k=1)
    assert len(lines) == len(images) == 201
    for (path, best, *_), [(label, probability)] in zip(lines, wanted, strict=True):
        name, _, number = best.rpartition(" ")
        assert name == label, path
        assert float(number) == pytest.approx(probability, abs=2e-5), path


def test_the_exported_predictor_is_the_classifier(exported: Path, run_folder: Path, photos: Path) -> None:
    ours, theirs = ImageClassifier.load(run_folder, "cpu"), vz.load_exported(exported)
    images = sorted(photos.iterdir())[:12]
    assert theirs.labels == ours.labels
    assert ours.calibration is not None
    assert ours.calibration.temperature != 1
    torch.testing.assert_close(theirs.probabilities(images), ours.probabilities(images), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(theirs.embed(images), ours.embed(images), rtol=1e-4, atol=1e-5)
    asked = {"sets": 0.9, "unknown_rate": 0.1}
    ours_named = [[label for label, _ in answer] for answer in ours.predict(images, **asked)]
    assert [[label for label, _ in answer] for answer in theirs.predict(images, **asked)] == ours_named
    # the graph's own probabilities are by the temperature too
    pixels = torch.stack([ours_pixels(ours, image) for image in images]).numpy()
    found = OnnxRunner(exported / "model.onnx")(pixels, outputs=["probabilities"])[0]
    np.testing.assert_allclose(found, ours.probabilities(images).numpy(), rtol=1e-4, atol=1e-6)


def ours_pixels(classifier: ImageClassifier, image: Path) -> torch.Tensor:
    from visionzoo.data.transforms import EvalTransform

    return EvalTransform(classifier.preprocess)(image)


def test_the_folder_explains_itself(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model)
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["probabilities", "logits", "features"]
    dims = model.graph.input[0].type.tensor_type
    assert dims.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in dims.shape.dim] == ["batch", 3, 32, 32]
    metadata = {p.key: p.value for p in model.metadata_props}
    assert json.loads(metadata["labels"]) == ["cat", "dog", "zebra", "zoo"]
    assert {"licence", "temperature", "preprocess", "backbone"} <= metadata.keys()
    spec = read_spec(exported)
    assert spec["temperature"] == pytest.approx(float(metadata["temperature"]))
    assert spec["preprocess"]["resize_mode"] in metadata["preprocess"]
    readme = (exported / "README.md").read_text()
    for word in ("probabilities", "in 0..1", "uint8", "batch", "zebra", spec["licence"]):
        assert word in readme
    assert {line.split("  ")[1] for line in (exported / SUMS_FILE).read_text().splitlines()} == {
        "README.md",
        "model.onnx",
        "predict.py",
        "preprocess.json",
    }


@pytest.mark.long
def test_the_command_exports_and_predicts(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run_folder), "--out", str(out), "--data.path", str(photos), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["output"] for row in said["proof"]} == {"probabilities", "logits", "features"}
    assert {row["batch"] for row in said["proof"]} == {1, 3, 8}
    assert all(row["difference"] < 1e-4 and row["changed"] == 0 for row in said["proof"])
    answers = []
    for model in (run_folder, out):
        assert main(["predict", str(model), str(photos / "001.png"), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)[0]["predictions"])
    assert [a["label"] for a in answers[0]] == [a["label"] for a in answers[1]]
    assert [a["probability"] for a in answers[0]] == pytest.approx([a["probability"] for a in answers[1]], abs=2e-5)


@pytest.mark.long
def test_a_perturbed_weight_fails_and_leaves_nothing(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write.export_onnx

    def spoilt(part: object, example: object, path: Path, metadata: dict[str, str]) -> None:
        real(part, example, path, metadata)  # type: ignore[arg-type]
        model = onnx.load(path)
        weight = next(w for w in model.graph.initializer if len(w.dims) == 2 and w.dims[0] > 8)
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] *= 1.05
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(write, "export_onnx", spoilt)
    assert main(["export", str(run_folder), "--out", str(tmp_path / "out")]) == 1
    assert "differs from PyTorch" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_schedulers_signal_leaves_nothing(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object) -> None:
        assert len(list(tmp_path.iterdir())) == 1  # the temporary folder
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(write, "export_onnx", stopped)
    assert main(["export", str(run_folder), "--out", str(tmp_path / "out")]) == TRY_AGAIN
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_was_changed_afterwards_is_refused(exported: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    spec = json.loads((folder / "preprocess.json").read_text())
    (folder / "preprocess.json").write_text(json.dumps({**spec, "labels": spec["labels"][::-1]}))
    with pytest.raises(ValueError, match=r"changed after it was exported: 'preprocess\.json'"):
        vz.load_exported(folder)
    done = subprocess.run(
        [sys.executable, str(folder / "predict.py"), str(photos / "001.png")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "preprocess.json was changed" in done.stderr


@pytest.mark.parametrize(("version", "hint"), [(99, "update visionzoo"), (0, "export the model anew")])
def test_another_version_is_refused(exported: Path, tmp_path: Path, version: int, hint: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    path = folder / "preprocess.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    sums = (folder / SUMS_FILE).read_text().replace(checksum(exported / path.name), checksum(path))
    (folder / SUMS_FILE).write_text(sums)
    with pytest.raises(ValueError, match=hint):
        vz.load_exported(folder)


def test_mistakes_are_one_line(
    run_folder: Path,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    cases = [
        (["export", str(run_folder), "--out", str(there)], "exists"),
        (["export", "vit_nano_patch4_32", "--out", str(tmp_path / "a")], "--weights"),
        (["export", str(run_folder), "--out", str(tmp_path / "a"), "--part", "clip"], "classifier, features, pyramid"),
        (["export", str(run_folder), "--out", str(tmp_path / "a"), "--labels", "x,y"], "can be exported"),
        (["export", str(run_folder), "--out", str(tmp_path / "a"), "--image-size", "64"], "of its own"),
        (["export", str(run_folder), "--out", str(tmp_path / "a"), "--data.path", str(there)], "no images"),
        (["export", str(tmp_path / "no" / "run"), "--out", str(tmp_path / "a")], "there is no run folder"),
        (["predict", str(there), str(there)], "not a run folder"),
        (["export", str(exported), "--out", str(tmp_path / "a")], "exported already"),
    ]
    for args, words in cases:
        assert main(args) == 2, args
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    monkeypatch.setattr("visionzoo.export.failure.find_spec", lambda name: None if name == "onnxscript" else name)
    assert main(["export", str(run_folder), "--out", str(tmp_path / "a")]) == 2
    assert "visionzoo[export]" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]


@pytest.mark.long
def test_an_operator_that_cannot_be_exported_is_named(run_folder: Path, tmp_path: Path) -> None:
    from visionzoo.export.plans import Wish, make_plan

    classifier = ImageClassifier.load(run_folder, "cpu")
    head = classifier.model.forward_head

    def odd(x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return torch.linalg.qr(head(x, pre_logits=pre_logits))[0]

    classifier.model.forward_head = odd
    with pytest.raises(ValueError, match=r"cannot be exported.*qr") as caught:
        write.export_plan(make_plan(classifier, Wish(), "odd"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_built_in_pictures_are_real_and_differ() -> None:
    images, said = proof_images(None)
    assert len(images) >= 8
    assert "photographs" in said
    assert all(np.asarray(image).std() > 10 for image in images)


def test_opened_splits_give_the_pictures_of_their_path() -> None:
    splits = open_data("shapes:40")
    for training in (False, True):
        ours, theirs = (data_images(data, 5, training=training) for data in (splits, "shapes:40"))
        assert [np.asarray(a).tolist() for a in ours] == [np.asarray(b).tolist() for b in theirs]
    assert proof_images(splits)[1] == "32 images of the splits that were given"


def test_bench_times_an_exported_folder(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(exported), "--batch-size", "2", "--rounds", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["image_size"] == [32, 32]
    assert found["images_per_second"] > 0
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
    assert main(["bench", str(exported), "--compile"]) == 2
    assert "exported as it is" in capsys.readouterr().err
