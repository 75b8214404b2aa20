"""Frozen features, kept on the disk, and what simple classifiers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.inference.probe import knn_accuracy, linear_probe, probe
from visionzoo.inference.stream import Stream
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.mae import create_mae


def clouds(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated clouds on the axes of a sphere, in eight dimensions."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    return (5 * np.eye(8)[y] + rng.normal(size=(count, 8))).astype(np.float32), y


def test_knn_is_the_weighted_vote_written_out() -> None:
    (x, y), (tx, ty) = clouds(0), clouds(1)
    x = x + 6.0 * np.random.default_rng(2).normal(size=x.shape)  # many votes are close
    right = 0
    for row, label in zip(tx, ty, strict=True):
        cosine = x @ row / np.linalg.norm(x, axis=1) / np.linalg.norm(row)
        near = np.argsort(-cosine)[:5]
        votes = np.zeros(3)
        for i in near:
            votes[y[i]] += np.exp(cosine[i] / 0.07)
        right += int(votes.argmax() == label)
    assert knn_accuracy(x, y, tx, ty, 5) == right / len(ty)
    assert 0.4 < right / len(ty) < 1


def test_the_penalty_is_chosen_on_held_out_training_images() -> None:
    rng = np.random.default_rng(0)
    (x, y), (tx, ty) = clouds(0, 90), clouds(1, 90)
    # many columns of noise: without a strong penalty they are learned by heart
    x, tx = (np.concatenate([0.3 * a, rng.normal(size=(90, 300))], axis=1) for a in (x, tx))
    accuracy, strength = linear_probe(x, y, tx, ty)
    assert strength < 1
    loose, used = linear_probe(x, y, tx, ty, strengths=[100.0])
    assert used == 100.0
    assert accuracy >= loose


def test_features_are_computed_once_and_again_when_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"train_limit": 200, "cache": tmp_path, "image_size": 16, "weights": "random"}
    first = probe("vit_nano_patch4_32", "digits", **options)
    assert not first.cached
    assert (first.width, first.classes, first.train_images, first.test_images) == (64, 10, 200, 359)
    assert first.linear > 0.5 > 0.2 < first.knn  # even random features tell digits apart
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "run", None)  # any forward pass would fail
        again = probe("vit_nano_patch4_32", "digits", **options)
    assert again.cached
    assert (again.knn, again.linear, again.strength) == (first.knn, first.linear, first.strength)
    other = probe("vit_nano_patch4_32", "digits", features="mean", **options)
    assert not other.cached


@pytest.mark.slow  # a ViT-B three times; weights/test_fingerprint.py asks the same of a small network
def test_features_are_computed_again_for_another_model_around_the_same_weights(tmp_path: Path) -> None:
    names = "vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"
    torch.save(vz.create_backbone(names[0], image_size=32).state_dict(), tmp_path / "w.pth")
    options: dict[str, Any] = {"weights": str(tmp_path / "w.pth"), "train_limit": 40, "cache": tmp_path}
    found = [probe(name, "digits", image_size=32, **options) for name in (*names, names[0])]
    assert [report.cached for report in found] == [False, False, True]


def test_a_masked_run_is_probed_by_the_mean_of_its_grid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_mae("vit_nano_patch4_32", image_size=16, decoder_dim=32, decoder_depth=1, decoder_heads=2)
    config = ModelConfig(task="mae", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path / "run")
    report = probe(tmp_path / "run", "digits", train_limit=100, cache=tmp_path / "cache")
    assert report.features == "mean"
    from safetensors.numpy import load_file

    from visionzoo.data.sources.open import open_data
    from visionzoo.data.transforms import EvalTransform
    from visionzoo.models.preprocess import Normalize

    held = open_data("digits").val
    assert held is not None
    image = Normalize(model.preprocess)(EvalTransform(model.preprocess)(held.read(0))[None])
    with torch.no_grad():
        expected = model.encoder.eval()(image).grid.mean(dim=(2, 3))[0]
    stored = max((load_file(f) for f in (tmp_path / "cache").iterdir()), key=lambda part: len(part["values"]))
    assert torch.allclose(torch.from_numpy(stored["values"][0]), expected, atol=1e-5)


def test_unreadable_images_are_listed_every_time(tmp_path: Path, capsys: Any) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (200 if name[-1] == "a" else 20, 10 * i, 0)).save(
                tmp_path / f"data/{name}/{i}.png"
            )
    (tmp_path / "data/train/a/1.png").write_bytes(b"no image")
    command = ["probe", "vit_nano_patch4_32", "--data.path", str(tmp_path / "data"), "--weights", "random"]
    command += ["--cache", str(tmp_path / "cache")]
    for _ in range(2):
        assert main([*command, "--json", "--k", "3"]) == 1
        printed = capsys.readouterr()
        report = json.loads(printed.out)
        assert (report["train_images"], report["test_images"], report["knn"]) == (7, 8, 1.0)
        assert "left out" in printed.err
        assert report["model"] == "vit_nano_patch4_32, random weights"


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neighbours=0"):
        probe("vit_nano_patch4_32", "digits", neighbours=0)
    with pytest.raises(ValueError, match="features='all' is unknown"):
        probe("vit_nano_patch4_32", "digits", features="all", weights="random", cache=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        probe(tmp_path, "digits", cache=tmp_path)
    with pytest.raises(ValueError, match="val_fraction"):
        probe("vit_nano_patch4_32", "digits", val_fraction=0.0, cache=tmp_path)
