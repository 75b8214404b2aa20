"""Masked pretraining before the equal recipe: who can, what is kept, and that each is one resumable piece."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.tiny import TINY, records, run

MORE = ["--recipes", "equal", "--corruptions", "none", "--fractions", "1", "--pretrain.steps", "5"]


def test_the_registry_says_who_is_pretrained_by_what(load: Any) -> None:
    models, pretraining = load("comparison.models"), load("comparison.pretraining")
    names = ("resnet_pilot", "vit_pilot", "swin_pilot", "cct_pilot")
    entries = [models.describe(models.resolve(n), 32, 10) for n in names]
    found, left_out = pretraining.methods(entries, 32, "auto")
    assert found == {"vit_pilot": "mae", "swin_pilot": "simmim"}
    assert left_out["timm/resnet_pilot"] == "it can neither drop tokens (MAE) nor take a mask token (SimMIM)"
    found, left_out = pretraining.methods(entries, 32, "simmim")
    assert set(found) == {"vit_pilot", "swin_pilot"}  # a ViT can take mask tokens too
    found, left_out = pretraining.methods(entries, 32, "mae")
    assert set(found) == {"vit_pilot"}
    assert left_out["swin_pilot"] == "it cannot drop tokens"
    with pytest.raises(ValueError, match=r"suits none of the models .resnet_pilot: .*leave pretrain.steps out"):
        pretraining.methods(entries[:1], 32, "auto")


@pytest.mark.parametrize(
    ("name", "size", "unit"),
    [("swin_pilot", 32, 4), ("swin_tiny_patch4_window7_224", 224, 32), ("swin_tiny_patch4_window7_224", 192, 32)],
)
def test_what_simmim_hides_follows_the_image(load: Any, name: str, size: int, unit: int) -> None:
    load("comparison.small")
    assert load("comparison.pretraining").mask_unit(name, size) == unit


def test_a_masked_image_costs_less_than_a_whole_one_with_mae(load: Any) -> None:
    pretraining, whole = load("comparison.pretraining"), load("comparison.models").describe("vit_pilot", 32, 10)
    encoder_alone = 0.25 * whole.gmacs
    assert encoder_alone < pretraining.forward_gmacs("vit_pilot", "mae", 32)
    swin = load("comparison.models").describe("swin_pilot", 32, 10)
    assert swin.gmacs < pretraining.forward_gmacs("swin_pilot", "simmim", 32) < 1.2 * swin.gmacs


@pytest.mark.long
def test_a_column_joins_an_older_comparison_and_goes_on(
    load: Any,
    here: list[tuple[str, str]],
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, without = tmp_path / "out", MORE[:-2]
    assert run(load, out, *without) == 0  # of before there was such a column
    here.clear()

    child, work = load("comparison.child"), load("comparison.child").work

    def stopped(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        if kind == "train" and spec["run"]["weights"]:
            raise KeyboardInterrupt
        return work(kind, spec)

    monkeypatch.setattr(child, "work", stopped)
    assert run(load, out, *MORE) == 130
    assert "1 pretrainings of 5 steps" in capsys.readouterr().out
    monkeypatch.setattr(child, "work", work)
    assert run(load, out, *MORE) == 0
    key = "train-vit_nano_patch4_32-pretrained-seed0-1"
    assert [name for _, name in here] == ["pretrain-vit_nano_patch4_32-seed0", key, key]

    (first,) = records(out, "pretrain")
    assert first["about"] == {"model": "vit_nano_patch4_32", "seed": 0, "method": "mae"}
    assert (first["result"]["steps"], first["result"]["train_images"]) == (5, 60)
    assert {r["about"]["recipe"] for r in records(out, "train")} == {"equal", "pretrained"}
    text = (out / "results.md").read_text()
    assert "then the equal recipe: vit_nano_patch4_32 by mae. Left out: lcnet_035 (it can neither" in text
    assert "| vit_nano_patch4_32 | mae | 5 |" in text
    assert "| lcnet_035 | CNN | " in text
    assert str(tmp_path) not in text + (out / "index.html").read_text() + (out / "results.json").read_text()

    here.clear()
    weights = out / "pieces" / "pretrain-vit_nano_patch4_32-seed0"
    shutil.rmtree(weights)
    assert run(load, out, *MORE) == 0
    assert here == []  # nobody needs them
    assert run(load, out, *MORE, "--pretrain.fractions", "0.5,1") == 0
    assert [kind for kind, _ in here] == ["pretrain", "train"]
    assert weights.is_dir()
    assert run(load, out, *without) == 0  # and without the column again
    assert run(load, out, *without, "--pretrain.steps", "6") == 2
    assert "pretrain.steps was 5 and is 6" in capsys.readouterr().err


@pytest.mark.long
def test_a_training_starts_from_what_was_learned_without_labels(load: Any, tmp_path: Path) -> None:
    pretraining, training, recipes = (load(f"comparison.{n}") for n in ("pretraining", "training", "recipes"))
    shared = {"image_size": 16, "batch_size": 8, "seed": 0, "path": "shapes:60", "val_path": None, "num_workers": 0}
    shared |= {"precision": "fp32", "device": "cpu", "steps": 5}
    for name, method in (("vit_nano_patch4_32", "mae"), ("swin_nano_patch2_window4_32", "simmim")):
        weights = tmp_path / name
        first = pretraining.Pretraining(model=name, method=method, base_lr=1e-3, **shared)
        pretraining.pretrain(first, tmp_path / f"run-{name}", weights)
        assert sorted(p.name for p in weights.iterdir()) == ["config.json", "model.safetensors"]
        run = training.Run(
            model=name, recipe=recipes.Recipe(), fraction=1.0, channels_last=False, weights=str(weights), **shared
        )
        task, _ = training.build(run)
        assert "(100.0%) loaded" in task.opening_line
        fresh, _ = training.build(training.Run(**{**vars(run), "weights": None}))
        assert task.model.preprocess == fresh.model.preprocess
        (a, b) = (t.model.state_dict() for t in (task, fresh))
        assert any((a[k] != b[k]).any() for k in a)
        before, _ = pretraining.build(first)
        assert before.preprocess == fresh.model.preprocess


def test_gains_of_pretraining_are_paired_by_network_and_share(load: Any) -> None:
    significance, models = load("comparison.significance"), load("comparison.models")
    rng, vit, cnn = np.random.default_rng(0), models.Entry("vit", "ViT", 1, 1.0), models.Entry("cnn", "CNN", 1, 1.0)
    right = {
        ("equal", 1.0, vit): rng.random((3, 800)) < 0.6,
        ("pretrained", 1.0, vit): rng.random((3, 800)) < 0.8,
        ("pretrained", 0.1, vit): rng.random((3, 800)) < 0.8,  # nothing to compare with
        ("equal", 1.0, cnn): rng.random((3, 800)) < 0.8,
    }
    (gain,) = significance.pretraining_gains(right, [cnn, vit])
    assert (gain.entry, gain.fraction, gain.verdict) == (vit, 1.0, "pretrained is better")
    assert gain.adjusted == gain.difference.p


def test_options_of_a_pretraining_are_checked(
    load: Any,
    here: list[tuple[str, str]],
    tmp_path: Path,
    capsys: Any,
) -> None:
    for more, message in (
        (("--pretrain.steps", "2"), "pretrain.steps=2 must be at least 5"),
        (("--pretrain.steps", "9", "--pretrain.base_lr", "0"), "pretrain.base_lr=0.0 must be above 0"),
        (("--pretrain.steps", "9", "--pretrain.fractions", "2"), "fraction 2 must be above 0"),
        (("--pretrain.steps", "9", "--models", "lcnet_035"), "suits none of the models (lcnet_035: it can neither"),
    ):
        assert run(load, tmp_path, *more) == 2
        assert message in capsys.readouterr().err
    assert here == []
    assert not (tmp_path / "settings.json").exists()


def test_old_settings_stay_readable(load: Any, tmp_path: Path, here: list[tuple[str, str]]) -> None:
    options, runner = load("comparison.options"), load("comparison.runner")

    def settings(*more: str) -> dict[str, Any]:
        runner.Comparison(options.check(options.parse([*TINY, "--out", str(tmp_path), *more])))
        return json.loads((tmp_path / "settings.json").read_text())

    before = settings()
    assert not any(key.startswith("pretrain") for key in before)
    joined = settings("--pretrain.steps", "7")
    assert joined == {**before, "pretrain.steps": 7, "pretrain.method": "auto", "pretrain.base_lr": 1.5e-4}
    assert settings() == joined
