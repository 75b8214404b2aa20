"""FSDP on the CPU with gloo: what DDP trains, in checkpoints that one process reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_process import COMMON, TINY, Fault, Launcher, metrics
from safetensors.torch import load_file
from test_processes import class_folders

Survived = Callable[..., None]
PLAIN = ["--model.drop_path=0", "--model.drop_rate=0", "--model.ema_decay=0", "--data.num_workers=0"]
PLAIN += ["--trainer.gradient_clip_val=1", "--trainer.max_epochs=2"]
TWO = ["--trainer.devices=2", "--data.batch_size=8"]
FSDP, DDP = [*TWO, "--trainer.strategy=fsdp"], [*TWO, "--trainer.strategy=ddp"]


def checkpoint(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True)["state_dict"]


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_what_is_trained_is_what_ddp_trains(launcher: Launcher) -> None:
    command = ["classify", "fit", *TINY["classify"], *COMMON, *PLAIN, "--model.lr=1e-4"]
    for name, options in (("ddp", DDP), ("fsdp", FSDP)):
        assert launcher.run(*command, *options, f"--run_dir={name}", world_size=2) == [0, 0], launcher.output()
    ddp, fsdp = launcher.folder / "ddp", launcher.folder / "fsdp"
    assert_close(checkpoint(ddp), checkpoint(fsdp))
    assert_close(load_file(ddp / "model.safetensors"), load_file(fsdp / "model.safetensors"))
    for one, two in zip(metrics(ddp), metrics(fsdp), strict=True):
        for key in ("train/loss", "val/loss"):
            if one[key]:
                assert float(one[key]) == pytest.approx(float(two[key]), abs=1e-4)
    # the same checkpoints, gone on with in one process: weights and the optimizer's state are whole
    for name in ("ddp", "fsdp"):
        more = [f"--resume={name}", "--trainer.max_epochs=3", "--trainer.devices=1", "--trainer.strategy=auto"]
        assert launcher.run("classify", "fit", *more) == [0], launcher.output()
    assert_close(checkpoint(ddp), checkpoint(fsdp))


@pytest.mark.slow
def test_a_killed_run_goes_on(launcher: Launcher, survived: Survived) -> None:
    command = ["classify", "fit", *TINY["classify"], *COMMON, *PLAIN, *FSDP, "--save_every_n_steps=1"]
    assert launcher.run(*command, "--run_dir=whole", world_size=2) == [0, 0], launcher.output()
    launcher.run(*command, "--run_dir=cut", fault=Fault(step=4, where="gradient", rank=1), world_size=2)
    assert launcher.run("classify", "fit", "--resume=cut", world_size=2) == [0, 0], launcher.output()
    whole, cut = checkpoint(launcher.folder / "whole"), checkpoint(launcher.folder / "cut")
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    survived("SIGKILL of one of two processes (FSDP), resumed bit for bit")


@pytest.mark.slow
def test_scores_of_21_images_are_those_on_one_process(launcher: Launcher) -> None:
    """In batches of 5: 11 and 10 images are three batches and two, and nobody waits for the third."""
    class_folders(launcher.folder / "set", {"train/a": 16, "train/b": 16, "val/a": 10, "val/b": 11})
    data = ["--data.path=set", "--data.batch_size=8", "--data.eval_batch_size=5", "--data.num_workers=0"]
    model = ["--model.backbone=vit_nano_patch4_32", "--model.image_size=16", "--trainer.accelerator=cpu"]
    fit = ["classify", "fit", *data, *model, *FSDP, "--trainer.max_epochs=1", "--run_dir=run"]
    assert launcher.run(*fit, world_size=2) == [0, 0], launcher.output()
    said = [line for line in launcher.ranks[-2].log.read_text().splitlines() if "held-out images" in line]
    check = ["classify", "validate", *data, "--model.weights=run", "--trainer.accelerator=cpu"]
    assert launcher.run(*check, "--run_dir=one") == [0], launcher.output()
    said += [line for line in launcher.ranks[-1].log.read_text().splitlines() if "held-out images" in line]
    assert "on 21 held-out images" in said[0]
    assert said[0].removeprefix("best epoch, 1 of 1: ") == said[1]


@pytest.mark.slow
def test_what_it_cannot_do_is_said(launcher: Launcher) -> None:
    averaged = ["classify", "fit", *TINY["classify"], *PLAIN, "--model.ema_decay=0.9"]
    for given in (averaged, ["mae", "fit", *TINY["mae"]], ["ssl", "fit", *TINY["ssl"]]):
        command = [*given, *COMMON, *FSDP, "--run_dir=run"]
        assert launcher.run(*command, world_size=2) == [2, 2], launcher.output()
        assert "fsdp does not go with" in launcher.ranks[-2].log.read_text()
