"""A run goes on where the weights that it began with are gone, and none but those may be named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from visionzoo.cli import train as cli

SMALL = {"backbone": "vit_nano_patch4_32", "image_size": 16}
DIGITS = {"path": "digits", "batch_size": 16, "num_workers": 0, "train_limit": 64}
SHAPES = {"path": "shapes:24", "batch_size": 8, "num_workers": 0}
SEGMENT = {"decoder_dim": 32, "embedding_stride": 4, "clicks": 1, "mask_rounds": 0}
CLIP = {"text_width": 32, "text_layers": 1, "text_heads": 2, "embed_dim": 32}
#: Options of each task beside the backbone, and its data.
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classify": ({}, DIGITS),
    "mae": ({"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}, DIGITS),
    "ssl": ({"method": "simclr", "hidden": 32, "out": 16, "watch_every_n_steps": 0}, DIGITS),
    "clip": (CLIP, SHAPES),
    "segment": ({**SEGMENT, "encoder": "full"}, {**SHAPES, "shapes_size": 32}),
}


def fit(task: str, folder: str, model: dict[str, Any], *options: str) -> int:
    data = TASKS[task][1]
    trainer = {"max_epochs": 2, "accelerator": "cpu", "limit_val_batches": 1}
    Path("config.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}))
    return cli.run([task, "fit", "--config", "config.yaml", "--run_dir", folder, *options])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each task."""
    folder = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for task, (model, _) in TASKS.items():
            assert fit(task, task, {**SMALL, **model}, "--trainer.max_steps", "2") == 0
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "option", "source", "kept"),
    [
        ("classify", "weights", "mae", ()),
        ("classify", "weights", "classify", ()),
        ("mae", "backbone_weights", "classify", ("decoder_dim", "decoder_depth", "decoder_heads")),
        ("mae", "weights", "mae", ()),
        ("ssl", "weights", "classify", ("method", "hidden", "out", "watch_every_n_steps")),
        ("ssl", "weights", "ssl", ("watch_every_n_steps",)),
        ("clip", "image_weights", "mae", tuple(CLIP)),
        ("clip", "weights", "clip", ()),
        ("clip", "weights", "clip", ("wise_ft",)),
        ("segment", "backbone_weights", "ssl", (*SEGMENT, "encoder")),
        ("segment", "weights", "segment", ("encoder", "clicks", "mask_rounds")),
    ],
)
def test_a_run_goes_on_without_what_it_began_with(
    task: str, option: str, source: str, kept: tuple[str, ...], sources: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sources / source, "source")
    shutil.copytree(sources / source, "another")
    model = {option: "source"} | {k: {**TASKS[task][0], "wise_ft": 0.5}[k] for k in kept}
    assert fit(task, "whole", {**model, "min_lr": 5e-4}) == 0
    assert fit(task, "cut", {**model, "min_lr": 5e-4}, "--trainer.max_steps", "2") == 0
    shutil.rmtree("source")
    began = json.loads(Path("cut/run.json").read_text())["sessions"][0]["ancestors"]

    assert cli.run([task, "fit", "--resume", "cut", f"--model.{option}", "another"]) == 2
    assert f"model.{option} was source and is another" in capsys.readouterr().err
    stop = ["--trainer.max_steps", "3"]
    assert cli.run([task, "fit", "--resume", "cut", *stop]) == 0
    assert "loaded from" not in capsys.readouterr().out, "nothing was"
    assert cli.run([task, "fit", "--resume", "cut", "--trainer.max_steps", "-1"]) == 0, "a second time"

    config = yaml.safe_load(Path("cut/config.yaml").read_text())
    assert config["model"][option] == "source", "the command that made it"
    assert config["model"].get("backbone") is None
    assert [s["ancestors"] for s in json.loads(Path("cut/run.json").read_text())["sessions"]] == [began] * 3
    whole, cut = (torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("whole", "cut"))
    assert cut["global_step"] == whole["global_step"]
    assert cut["options"][option] == "source"
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, cut["state_dict"][name]), name
    if "wise_ft" in kept:
        best = torch.load("cut/best.ckpt", weights_only=True)["state_dict"]
        start, exported = (load_file(f"{run}/model.safetensors") for run in ("another", "cut"))
        for name, tensor in exported.items():
            torch.testing.assert_close(tensor, 0.5 * start[name] + 0.5 * best[f"model.{name}"], rtol=1e-6, atol=1e-7)


def test_a_damaged_checkpoint_is_named_also_where_the_start_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit("classify", "source", SMALL, "--trainer.max_steps", "2") == 0
    assert fit("classify", "cut", {"weights": "source"}, "--trainer.max_steps", "2") == 0
    shutil.rmtree("source")
    last = Path("cut/last.ckpt")
    last.write_bytes(last.read_bytes()[:1000])
    assert cli.run(["classify", "fit", "--resume", "cut"]) == 2
    error = capsys.readouterr().err
    assert "last.ckpt is no whole checkpoint" in error
    assert error.count("\n") == 1
    assert last.stat().st_size == 1000


@pytest.mark.long
def test_wise_ft_cannot_begin_in_the_middle_of_a_run(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit("clip", "cut", {"weights": str(sources / "clip")}, "--trainer.max_steps", "2") == 0
    before = Path("cut/last.ckpt").read_bytes()
    assert cli.run(["clip", "fit", "--resume", "cut", "--model.wise_ft", "0.5"]) == 2
    assert "wise_ft=0.5: the run began without it" in capsys.readouterr().err
    assert Path("cut/last.ckpt").read_bytes() == before
