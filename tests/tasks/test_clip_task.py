"""Contrastive training: learning, hand-over, locked tower, interpolation, cached gradients, resuming, what is said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import Kill, Killed, Losses, fit_quietly

import visionzoo as vz
from visionzoo.data.clip import ClipData
from visionzoo.models.bundle import load_bundle, read_config, save_bundle
from visionzoo.models.clip.interpolate import interpolated
from visionzoo.runs import RunFolder
from visionzoo.tasks.clip import ClipTask
from visionzoo.tasks.engine.ema import EMA
from visionzoo.tasks.engine.run_files import RunFiles
from visionzoo.tasks.mae import MaeTask

#: 64 pictures in batches of 16: four steps an epoch.
STEPS = 4
SMALL: dict[str, Any] = {
    "backbone": "vit_nano_patch4_32",
    "image_size": 16,
    "text": "nano",
    "text_width": 32,
    "text_heads": 2,
    "context_length": 8,
}
#: What a named model, or a run, says itself.
UNSAID: dict[str, Any] = dict.fromkeys(SMALL)


def task(**options: Any) -> ClipTask:
    torch.manual_seed(0)
    defaults = {**SMALL, "lr": 1e-3, "zero_shot_classes": data().zero_shot_classes, "zero_shot_templates": ["a {}"]}
    return ClipTask(**{**defaults, **options})


def data(**options: Any) -> ClipData:
    given = {"batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "crop": "resize"}
    return ClipData("shapes:64", **{**given, **options})


def fit(
    module: ClipTask, folder: Path, resume: Path | None = None, datamodule: ClipData | None = None, **trainer: Any
) -> pl.Trainer:
    averages = [EMA(module.ema_decay)] if module.ema_decay else []
    trainer = {"limit_val_batches": 0, **trainer, "callbacks": [*averages, *trainer.get("callbacks", [])]}
    return fit_quietly(module, datamodule or data(), folder, resume, **trainer)


def weights(module: ClipTask) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.model.state_dict().items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def assert_close_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert (tensor - b[name]).norm() <= tolerance * max(1e-3, float(tensor.norm())), name


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported CLIP, as a run leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "clip"
    save_bundle(*task().export_model(), folder)
    return folder


@pytest.fixture(scope="module")
def mae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mae"
    torch.manual_seed(7)
    small = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    masked = MaeTask(backbone="vit_nano_patch4_32", image_size=16, **small)
    save_bundle(*masked.export_model(), folder)
    return folder


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_it_learns(loss: str, tmp_path: Path) -> None:
    module, losses = task(loss=loss, lr=3e-4, warmup_steps=8), Losses()
    before = weights(module)
    fit(module, tmp_path, max_epochs=6, callbacks=[losses])
    seen = list(losses.seen.values())
    assert sum(seen[-STEPS:]) < 0.7 * sum(seen[:STEPS])
    moved = {k for k, v in weights(module).items() if not torch.equal(v, before[k])}
    assert moved == set(before)
    assert ("logit_bias" in moved) == (loss == "sigmoid")


def test_scores_are_those_of_the_zero_shot_classifier(clip_run: Path, tmp_path: Path) -> None:
    module, loader = task(**UNSAID, weights=str(clip_run)), data()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    folder = RunFiles(RunFolder(tmp_path))
    loop = pl.Trainer(**options, callbacks=[folder], use_distributed_sampler=False)
    (captions, labels) = loop.validate(module, datamodule=loader, verbose=False)
    found = {**captions, **labels}
    names = {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert {k.removeprefix("val/") for k in found} == {*names, "recall_mean", "accuracy"}
    assert loader.val_source is not None
    pictures = [loader.val_source.read(i) for i in range(500)]
    zero_shot = vz.ZeroShotClassifier(module.model, loader.zero_shot_classes, "a {}")
    answers = zero_shot.probabilities(pictures, 100).argmax(1)
    right = (answers == torch.from_numpy(loader.val_source.targets)).float().mean()
    assert found["val/accuracy"] == pytest.approx(float(right), abs=1 / 500)
    # 48 captions are 48 texts: a random model finds one of about ten copies of its text by chance
    assert 0 < found["val/text_to_image_r10"] < 1


def test_a_test_without_labels_has_no_accuracy(clip_run: Path) -> None:
    module = task()
    loader = data()
    loader.preprocess = module.preprocess
    batch = loader.sample_batch(16)
    module.update_evaluation(batch)
    values = module.finish_evaluation()
    assert "accuracy" not in values
    assert "recall_mean" in values
    assert len(module.found) == 12
    assert module.finish_evaluation() == {}


def test_found_captions_differ(tmp_path: Path) -> None:
    module, loader = task(), data()
    loader.preprocess = module.preprocess
    module.update_evaluation(loader.sample_batch(400))
    module.finish_evaluation()
    for _, captions in module.found:
        assert len({text for text, _ in captions}) == 3


def test_a_masked_run_hands_its_encoder_over_bit_by_bit(mae_run: Path) -> None:
    for option in ("weights", "image_weights"):
        module = task(**{option: str(mae_run)}, backbone=None, image_size=None)
        stored = load_file(mae_run / "model.safetensors")
        encoder = {k.removeprefix("encoder."): v for k, v in stored.items() if k.startswith("encoder.")}
        assert_same_weights(module.model.visual.trunk.state_dict(), encoder)
        assert module.opening_line.startswith("54 of 54 tensors of the backbone (100.0%) loaded from ")
        assert module.model.image_size == (16, 16)
        assert module.score_before
    with pytest.raises(ValueError, match=r"run of the backbone vit_nano_patch4_32, not of swin_nano"):
        task(weights=str(mae_run), backbone="swin_nano_patch2_window4_32", image_size=None)
    with pytest.raises(ValueError, match=r"run of the backbone vit_nano_patch4_32, not of vit_base_patch32_clip_224"):
        task(**UNSAID, weights=str(mae_run), name="ViT-B-32")


def test_statistics_are_those_of_the_weights_and_others_are_refused(mae_run: Path) -> None:
    with pytest.raises(ValueError, match="contradicts preprocess=: mean is"):
        task(image_weights=str(mae_run), image_statistics="openai")
    assert task(image_weights=str(mae_run)).preprocess.mean == read_config(mae_run).preprocess.mean


def test_a_locked_tower_stays_bit_equal_and_in_eval(mae_run: Path, tmp_path: Path) -> None:
    module = task(weights=str(mae_run), lock_image=True, drop_path=0.5, patch_dropout=0.5)
    before = weights(module)

    class Modes(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            assert not any(m.training for m in pl_module.model.visual.trunk.modules())
            assert pl_module.model.text.training

    fit(module, tmp_path, callbacks=[Modes()], limit_val_batches=1)
    moved = {k for k, v in weights(module).items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if not k.startswith("visual.trunk.")}


@pytest.mark.long
@pytest.mark.parametrize("micro_batch", [0, 8])
def test_a_locked_tower_runs_once_for_images_that_do_not_vary(mae_run: Path, tmp_path: Path, micro_batch: int) -> None:
    """Features are kept, and the run is the one in which they are computed in every step."""
    assert data().fixed_images
    assert not data(hflip=0.5).fixed_images
    assert not data(policy="randaugment").fixed_images
    assert not data(crop="random_resized").fixed_images
    assert data(crop="random_resized", hflip=0.5, fixed_views=4).fixed_images
    runs = {}
    for name, options in (
        ("every step", {"fixed_images": False}),
        ("off", {"embedding_cache": "off"}),
        ("cold", {"embedding_cache": str(tmp_path / "cache")}),
        ("warm", {"embedding_cache": str(tmp_path / "cache")}),
    ):
        given = {"fixed_images": True, "lock_image": True, "micro_batch": micro_batch, **options}
        module = task(weights=str(mae_run), **given)
        fit(module, tmp_path / name, max_epochs=2)
        runs[name] = module
    for name, misses, hits in (("cold", 64, 64), ("warm", 0, 128)):
        frozen = runs[name].frozen
        assert frozen is not None
        assert frozen.cache is not None
        assert (frozen.cache.misses, frozen.cache.hits) == (misses, hits)
        assert_same_weights(weights(runs[name]), weights(runs["off"]))
    assert_close_weights(weights(runs["off"]), weights(runs["every step"]), 1e-4)
    assert "are kept in" in runs["warm"].opening_line
    pictures = torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8)
    module = runs["warm"].eval()
    whole = module.model.encode_image(module.normalize(pictures), normalize=True)
    torch.testing.assert_close(module.encode_read(module.read(pictures)), whole, rtol=1e-4, atol=1e-5)


def test_what_is_exported_is_the_interpolation(clip_run: Path, tmp_path: Path) -> None:
    module = task(weights=str(clip_run), wise_ft=0.25)
    start = load_file(clip_run / "model.safetensors")
    fit(module, tmp_path)
    trained, exported = weights(module), load_file(tmp_path / "model.safetensors")
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * trained[name], rtol=1e-6, atol=1e-7)
    assert not torch.equal(exported["text.ln_final.weight"], trained["text.ln_final.weight"])
    with pytest.raises(ValueError, match=r"share=1\.5"):
        interpolated(module.model, start, 1.5)
    with pytest.raises(ValueError, match="keys or shapes differ"):
        interpolated(module.model, {**start, "logit_scale": torch.ones(2)}, 0.5)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("clip_norm", "accumulate"), [(0.0, 1), (0.5, 1), (0.5, 3)])
def test_cached_steps_equal_whole_ones(loss: str, clip_norm: float, accumulate: int, tmp_path: Path) -> None:
    whole, cached = task(loss=loss), task(loss=loss, micro_batch=5)
    shared: dict[str, Any] = {"gradient_clip_val": clip_norm or None, "accumulate_grad_batches": accumulate}
    losses = Losses(), Losses()
    # in float64: AdamW makes a whole step of a gradient that is rounding alone, such as that of the keys' bias
    fit(whole, tmp_path / "whole", callbacks=[losses[0]], precision="64-true", **shared)
    loop = fit(cached, tmp_path / "cached", callbacks=[losses[1]], precision="64-true", **shared)
    assert loop.global_step == 2 * math.ceil(STEPS / accumulate)
    assert list(losses[1].seen.values()) == pytest.approx(list(losses[0].seen.values()), rel=1e-9)
    assert_close_weights(weights(whole), weights(cached), 1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{"patch_dropout": 0.5, "drop_path": 0.2, "ema_decay": 0.9}, {"micro_batch": 8, "patch_dropout": 0.5}]
)
def test_resume_is_bit_equal(options: dict[str, Any], tmp_path: Path) -> None:
    whole, cut, resumed = task(**options), task(**options), task(**options)
    cut.before = {"accuracy": 0.125}
    run = RunFolder(tmp_path / "cut")
    fit(whole, tmp_path / "whole", max_epochs=3)
    with pytest.raises(Killed):
        fit(cut, run.path, max_epochs=3, callbacks=[Kill(STEPS + 3)], every_n_steps=2)
    assert torch.load(run.last, weights_only=True)["global_step"] == STEPS + 2
    fit(resumed, run.path, resume=run.last, max_epochs=3)
    assert_same_weights(weights(whole), weights(resumed))
    assert_same_weights(load_file(tmp_path / "whole" / "model.safetensors"), load_file(run.model))
    assert resumed.before == {"accuracy": 0.125}


def test_captions_that_are_too_long_are_counted(tmp_path: Path) -> None:
    module = task(context_length=4)
    loop = fit(module, tmp_path, limit_val_batches=1)
    metrics = {k.removeprefix("val/"): float(v) for k, v in loop.callback_metrics.items()}
    line = module.summary(metrics)
    assert "64 of 64 training captions were longer than 4 tokens and cut at the end" in line
    assert "64 of 64 held-out captions were longer" in line
    whole = task()
    fit(whole, tmp_path / "whole", max_epochs=1, limit_val_batches=1)
    assert "longer" not in whole.summary({})


def test_the_temperature_of_a_checkpoint_is_within_bounds(tmp_path: Path) -> None:
    """It is bounded before the save: else a resumed run took its first step with another temperature."""
    module = task()
    with torch.no_grad():
        module.model.logit_scale.fill_(math.log(100) + 1)
    fit(module, tmp_path, max_steps=1, every_n_steps=1)
    stored = torch.load(RunFolder(tmp_path).last, weights_only=True)["state_dict"]["model.logit_scale"]
    assert float(stored) <= math.log(100) + 1e-6


@pytest.mark.parametrize("micro_batch", [0, 8])
def test_a_broken_temperature_is_said(micro_batch: int, tmp_path: Path) -> None:
    module = task(micro_batch=micro_batch)
    with torch.no_grad():
        module.model.logit_scale.fill_(math.nan)
    with pytest.raises(ValueError, match=r"temperature is broken: logit_scale=nan"):
        fit(module, tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"wise_ft": 0.0}, r"wise_ft=0\.0"),
        ({"micro_batch": -1}, "micro_batch=-1"),
        ({"layer_decay": 0.7}, r"layer_decay=0\.7"),
        ({"weights": "a", "image_weights": "b"}, "weights or image_weights, not both"),
        ({"choose_by": "loss"}, "choose_by='loss'"),
        ({"choose_by": "accuracy", "zero_shot_classes": ()}, "needs labelled images"),
        ({"zero_shot_templates": ["a photo"]}, r"'a photo' needs \{\}"),
        ({"patch_dropout": 1.0}, r"patch_dropout=1\.0"),
        ({"backbone": None}, "takes a name or a backbone"),
        ({"name": "ViT-B-32", "backbone": None}, "ViT-B-32 fixes text"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        task(**options)


def test_a_clip_of_another_backbone_is_refused(clip_run: Path, mae_run: Path) -> None:
    with pytest.raises(ValueError, match=r"CLIP whose backbone is vit_nano_patch4_32, not swin_nano"):
        task(weights=str(clip_run), backbone="swin_nano_patch2_window4_32")
    with pytest.raises(ValueError, match=r"wise_ft=0\.5 mixes with the CLIP"):
        task(weights=str(mae_run), wise_ft=0.5)


def test_wise_ft_from_random_weights_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wise_ft=0\.5.*model\.weights"):
        fit(task(wise_ft=0.5), tmp_path)


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``train.py clip fit`` on shapes; gives what it printed."""
    from visionzoo.cli.train import run

    def call(*options: str, status: int = 0) -> str:
        shared = ["--data.path", "shapes:64", "--data.num_workers", "0", "--data.templates", "['a {}']"]
        shared += ["--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu", "--data.batch_size", "16"]
        assert run(["clip", "fit", *shared, *options]) == status
        out, err = capsys.readouterr()
        return out + err

    return call


@pytest.mark.long
def test_the_score_before_is_in_the_summary_also_after_a_resume(
    command: Callable[..., str], clip_run: Path, tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    out = command("--model.weights", str(clip_run), "--run_dir", folder, "--trainer.max_epochs", "1")
    line = next(line for line in out.splitlines() if "zero-shot accuracy" in line and "before" in line)
    before = line.partition(" % before training")[0].rpartition("(")[2]
    assert "text to image R@1/5/10" in line
    model, config = load_bundle(folder)
    assert config.labels == data().zero_shot_classes
    assert (tmp_path / "run" / "retrieval.png").is_file()
    again = command("--resume", folder, "--trainer.max_epochs", "2")
    assert f"({before} % before training)" in again
    assert isinstance(model, torch.nn.Module)


def test_a_run_of_another_backbone_is_one_line(command: Callable[..., str], mae_run: Path, tmp_path: Path) -> None:
    out = command(
        "--model.weights", str(mae_run), "--model.backbone", "swin_nano_patch2_window4_32",
        "--run_dir", str(tmp_path / "run"), status=2,
    )  # fmt: skip
    assert out.startswith("error: ")
    assert "holds a run of the backbone vit_nano_patch4_32, not of swin_nano_patch2_window4_32" in out


@pytest.mark.long
def test_predict_names_held_out_images(clip_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from visionzoo.cli.train import run

    options = ["--model.weights", str(clip_run), "--data.path", "shapes:64", "--data.num_workers", "0"]
    options += ["--data.templates", "['a {}']", "--trainer.accelerator", "cpu", "--trainer.limit_predict_batches", "1"]
    options += ["--run_dir", str(tmp_path)]
    assert run(["clip", "predict", *options]) == 0
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert rows[0] == "image,label,probability"
    assert len(rows) == 65
    loader = data()
    assert loader.val_source is not None
    zero_shot = vz.ZeroShotClassifier.load(clip_run, templates="a {}", device="cpu")
    for row, (answer,) in zip(
        rows[1:], zero_shot.predict([loader.val_source.read(i) for i in range(64)], 1), strict=True
    ):
        assert row.split(",")[1] == answer[0]
        assert float(row.split(",")[2]) == pytest.approx(answer[1], abs=1e-5)
    assert run(["clip", "predict", *options, "--data.zero_shot_path", "none"]) == 2
    assert "predict names images by their classes" in capsys.readouterr().err


def test_captions_that_the_model_reads_alike_are_one_text() -> None:
    from visionzoo.models.clip.tokenizer import BytePairTokenizer
    from visionzoo.tasks.clip_evaluation import text_groups

    tokenizer = BytePairTokenizer(16)
    groups = text_groups(tokenizer(["A red circle", "a red  circle", "a red circle.", *["word " * 20, "word " * 30]]))
    assert groups[0] == groups[1] != groups[2]
    assert groups[3] == groups[4]  # cut at the same place


def test_zero_shot_images_with_several_labels_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "label": ["x", "y"]}, {"image": "a.png", "label": ["y"]}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="has several labels an image; it needs one of each"):
        ClipData("shapes:12", zero_shot_path=str(tmp_path / "list.jsonl"))
