"""Masked pretraining: the recipe, learning, sheets, and the hand-over to fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import Kill, Killed, fit_quietly

from visionzoo.backbones import create_backbone
from visionzoo.data.mae import MaeData
from visionzoo.models.bundle import load_bundle
from visionzoo.models.mae import MAE
from visionzoo.models.simmim import SimMIM
from visionzoo.models.trunk import load_trunk
from visionzoo.runs import RunFolder
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.engine.loggers import Events
from visionzoo.tasks.engine.sheets import Sheets
from visionzoo.tasks.mae import MaeTask

SMALL: dict[str, Any] = {
    "backbone": "vit_nano_patch4_32",
    "image_size": 16,
    "decoder_dim": 32,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "base_lr": 2e-2,
}


def task(**options: Any) -> MaeTask:
    torch.manual_seed(0)
    return MaeTask(**{**SMALL, **options})


def data(**options: Any) -> MaeData:
    given = {"batch_size": 32, "num_workers": 0, "train_limit": 256, "crop": "resize", "hflip": 0.0}
    return MaeData("digits", **{**given, **options})


def fit(module: MaeTask, folder: Path, resume: Path | None = None, **trainer: Any) -> pl.Trainer:
    return fit_quietly(module, data(), folder, resume, **trainer)


class OneEpoch(pl.Callback):
    """The first of a longer run."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True


@pytest.fixture(scope="module")
def mae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mae"
    fit(task(), folder)
    return folder


def test_the_method_follows_the_capabilities() -> None:
    assert isinstance(task().model, MAE)
    assert isinstance(task(method="simmim", mask_patch_size=4).model, SimMIM)
    swin = task(backbone="swin_nano_patch2_window4_32", image_size=None, mask_patch_size=4)
    assert isinstance(swin.model, SimMIM)
    assert swin.model.mask_ratio == 0.6
    with pytest.raises(ValueError, match="needs the capability 'tokens'"):
        task(backbone="swin_nano_patch2_window4_32", image_size=None, method="mae")
    with pytest.raises(ValueError, match=r"SimMIM needs the capability 'masked_image'.*resnet18 does not have"):
        task(backbone="timm/resnet18", image_size=None)


def test_the_recipe_is_the_papers(tmp_path: Path) -> None:
    module = task(base_lr=1.5e-4, weight_decay=0.05)
    some = {"limit_train_batches": 5, "limit_val_batches": 0, "accumulate_grad_batches": 5}
    loop = fit(module, tmp_path, max_epochs=20, callbacks=[OneEpoch()], **some)
    (optimizer,) = loop.optimizers
    assert optimizer.defaults["betas"] == (0.9, 0.95)
    assert module.peak_lr(loop) == pytest.approx(1.5e-4 * 32 * 5 / 256)
    assert module._warmup(20) == 2  # a tenth of a run that is shorter than 400 epochs
    assert module._warmup(2000) == 40  # 40 epochs of one step each
    assert task(warmup_epochs=3.0).warmup_epochs == 3.0
    decayed = {n for g in module.param_groups(1.0) if g["weight_decay"] for n in g["param_names"]}
    assert "encoder.blocks.0.attn.qkv.weight" in decayed
    assert not {"decoder.mask_token", "encoder.cls_token", "encoder.norm.weight"} & decayed
    assert "decoder.pos_embed" not in {n for g in module.param_groups(1.0) for n in g["param_names"]}


@pytest.mark.long
def test_it_learns_to_reconstruct(tmp_path: Path) -> None:
    module = task()
    untrained = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    before = untrained.validate(module, datamodule=data(), verbose=False)[0]["val/loss"]
    loop = fit(module, tmp_path / "run", max_epochs=12)
    after = loop.validate(module, datamodule=data(), verbose=False)[0]["val/loss"]
    assert before > 1.2
    assert after < 0.85  # a constant prediction gives 1: patches are normalised


def test_held_out_images_hide_the_same_patches_in_any_batch(mae_run: Path) -> None:
    module = task(weights=str(mae_run), backbone=None, image_size=None).eval()
    scores = []
    for size in (7, 64):
        loader = data(eval_batch_size=size)
        loader.preprocess = module.preprocess
        for batch in loader.val_dataloader():  # type: ignore[union-attr]
            module.update_evaluation(batch)
        scores.append(float(module.finish_evaluation()["loss"]))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_run_is_gone_on_with_as_it_was_built(mae_run: Path) -> None:
    again = MaeTask(weights=str(mae_run))
    first = load_bundle(mae_run)[0]
    assert again.model.architecture == first.architecture
    assert all(
        torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), first.state_dict().values(), strict=True)
    )
    assert MaeTask(weights=str(mae_run), mask_ratio=0.5).model.mask_ratio == 0.5


@pytest.mark.long
def test_resume_is_bit_equal(tmp_path: Path) -> None:
    whole, cut, resumed = task(), task(), task()
    fit(whole, tmp_path / "whole", max_epochs=3)
    run = RunFolder(tmp_path / "cut")
    with pytest.raises(Killed):
        fit(cut, run.path, max_epochs=3, callbacks=[Kill(13)], every_n_steps=3)
    assert torch.load(run.last, weights_only=True)["global_step"] == 12  # in the second epoch of eight steps
    fit(resumed, run.path, resume=run.last, max_epochs=3)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_sheets_are_drawn_while_it_learns(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    fit(task(), run.path, max_epochs=1, callbacks=[Sheets(4, 3)], logger=[Events(run.path)])
    assert sorted(p.name for p in run.sheets.glob("*.png")) == ["step_0000004.png", "step_0000008.png"]
    with Image.open(run.sheets / "step_0000008.png") as picture:
        assert picture.height > 3 * 100
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path), size_guidance={"images": 0})
    events.Reload()
    assert [e.step for e in events.Images("sheet")] == [4, 8]


def test_the_encoder_of_a_run_starts_a_classifier_bit_by_bit(mae_run: Path) -> None:
    with pytest.warns(UserWarning, match="head"):
        classify = ClassifyTask(num_classes=10, weights=str(mae_run))
    stored = load_file(mae_run / "model.safetensors")
    own = classify.model.state_dict()
    encoder = {k.removeprefix("encoder."): v for k, v in stored.items() if k.startswith("encoder.")}
    assert set(encoder) == {k for k in own if not k.startswith("head.")}
    for name, tensor in encoder.items():
        assert torch.equal(own[name], tensor), name
    assert classify.opening_line.startswith("54 of 54 tensors of the backbone (100.0%) loaded from ")
    assert classify.backbone_name == "vit_nano_patch4_32"
    assert classify.model.image_size == (16, 16)
    trunk = load_trunk(mae_run)
    assert all(torch.equal(trunk.state_dict()[k], v) for k, v in encoder.items())


def test_fine_tuning_from_a_run_goes_to_its_end(mae_run: Path, tmp_path: Path) -> None:
    from visionzoo.cli.train import run

    options = [
        "--data.path",
        "digits",
        "--data.num_workers",
        "0",
        "--data.train_limit",
        "64",
        "--trainer.max_epochs",
        "1",
    ]
    options += ["--trainer.limit_val_batches", "1", "--run_dir", str(tmp_path / "run")]
    assert run(["classify", "fit", "--model.weights", str(mae_run), *options]) == 0
    _, config = load_bundle(tmp_path / "run")
    assert config.task == "classify"


def test_a_hand_over_that_leaves_too_much_behind_is_refused(mae_run: Path) -> None:
    from visionzoo.models.classifier import create_classifier
    from visionzoo.tasks.handover import describe_handover
    from visionzoo.weights import load_weights

    model = create_classifier("vit_nano_patch4_32", 10, image_size=16)
    with pytest.warns(UserWarning, match="head"):
        report = load_weights(model, mae_run)
    import dataclasses

    short = dataclasses.replace(report, reset=("blocks.0.norm1.weight", "norm.weight", "norm.bias"))
    with pytest.raises(ValueError, match=r"only 51 of 54 tensors \(94.4%\)"):
        describe_handover(short, model)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 must be above 0 and below 1"),
        ({"mask_ratio": 0.99}, "leaves no visible patch of 16"),
        ({"image_size": 18}, "18"),
        ({"method": "clip"}, "method='clip' is unknown"),
        ({"backbone": None}, "model.backbone is not given"),
        ({"sheet_images": 0}, "sheet_images=0"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        task(**options)


def test_runs_that_do_not_fit_are_refused(mae_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a run of the backbone vit_nano_patch4_32, not of swin_nano"):
        ClassifyTask(num_classes=10, weights=str(mae_run), backbone="swin_nano_patch2_window4_32")
    from visionzoo.models.bundle import save_bundle

    classify = ClassifyTask(num_classes=3, backbone="vit_nano_patch4_32")
    save_bundle(*classify.export_model(), tmp_path / "classify")
    with pytest.raises(ValueError, match="task 'classify', which has nothing to reconstruct with"):
        MaeTask(weights=str(tmp_path / "classify"))


@pytest.mark.parametrize("backbone", ["vit_nano_patch4_32", "swin_nano_patch2_window4_32"])
def test_an_encoder_from_anywhere_is_pretrained_further(backbone: str, tmp_path: Path) -> None:
    """A run of another task, and bare weights of a backbone; its positions are its own."""
    from visionzoo.models.bundle import save_bundle

    classify = ClassifyTask(num_classes=3, backbone=backbone)
    save_bundle(*classify.export_model(), tmp_path / "classify")
    trunk = create_backbone(backbone)
    save_file(trunk.state_dict(), tmp_path / "trunk.safetensors")
    small = {} if backbone.startswith("vit") else {"mask_patch_size": 8}
    runs = (str(tmp_path / "classify"), classify.model.state_dict(), None)
    files = (str(tmp_path / "trunk.safetensors"), trunk.state_dict(), backbone)
    for source, state, named in (runs, files):
        module = MaeTask(backbone_weights=source, backbone=named, **small)
        assert module.opening_line.endswith(f"of the backbone (100.0%) loaded from {source}")
        for name, tensor in module.model.encoder.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        if module.method == "mae":
            assert module.model.encoder.pos_embed.requires_grad
            assert module.model.architecture["positions"] == "learned"
        again = MaeTask(**module.built)  # what a resumed run is built from needs no weights
        assert again.model.state_dict().keys() == module.model.state_dict().keys()
    with pytest.raises(ValueError, match="weights and backbone_weights are both given"):
        MaeTask(weights=runs[0], backbone_weights=runs[0])
    with pytest.raises(ValueError, match="positions='sincos' would replace those of backbone_weights"):
        MaeTask(backbone_weights=runs[0], positions="sincos")


def test_constant_images_give_no_nan() -> None:
    module = task()
    loss = module.model.loss(torch.zeros(2, 3, 16, 16))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
