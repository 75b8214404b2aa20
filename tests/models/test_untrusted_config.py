"""A run folder comes from anywhere: its configuration builds what its weights fill, or is refused in one line."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm  # noqa: F401  its first import takes seconds, which is no fault of a configuration's
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.inference.load_clip import load_clip
from visionzoo.inference.masks import load_text_prompts
from visionzoo.models.bundle import BUILDERS, ModelConfig, load_bundle, read_config, save_bundle
from visionzoo.models.clip.identify import identify
from visionzoo.models.trunk import load_trunk

SMALL: dict[str, dict[str, Any]] = {
    "classify": {"num_classes": 3, "image_size": 32},
    "mae": {"image_size": 32, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "simmim": {"image_size": 32, "mask_patch_size": 8},
    "ssl": {"image_size": 32, "hidden": 32, "out": 32, "patch_loss_weight": 1.0},
    "clip": {"text": "nano", "image_size": 32},
    "segment": {"image_size": 32, "decoder_dim": 32},
}
#: Two patches of 8 pixels would do; what matters is that every task builds it.
BACKBONE = "vit_nano_patch4_32"
HUGE = 10**400
CALIBRATION: dict[str, Any] = {
    "images": 30, "temperature": 1.5, "error": [0.1, 0.02], "levels": [0.5, 0.9], "sets": [0.0, 0.4],
    "known": [0.1, 0.3], "penalty": 0.01, "free_ranks": 5,
}  # fmt: skip
#: (part of the file, key, value): what no run writes.
BROKEN: list[tuple[str, str, Any]] = [
    ("architecture", "weights", "hf-hub:evil/x"),
    ("architecture", "weights", "/etc/passwd"),
    ("architecture", "backbone_weights", "timm:resnet18.a1_in1k"),
    ("architecture", "image_weights", "/etc/passwd"),
    ("architecture", "backbone", "timm/hf-hub:evil/x"),
    ("architecture", "backbone", {"name": {"name": "vit"}}),
    ("architecture", "backbone", "/etc/passwd"),
    ("architecture", "nonsense", 1),
    ("architecture", "image_size", 10**9),
    ("architecture", "image_size", [32, 10**9]),
    ("architecture", "image_size", 8192),
    ("architecture", "image_size", [[32]]),
    ("architecture", "image_size", HUGE),
    ("architecture", "drop_path", float("nan")),
    ("architecture", "drop_path", "0.1"),
    ("preprocess", "image_size", [10**9, 10**9]),
    ("preprocess", "mean", [float("nan")] * 3),
    ("preprocess", "mean", "grey"),
    ("preprocess", "std", []),
    ("preprocess", "std", [1e300] * 3),
    ("preprocess", "value_scale", 0),
    ("preprocess", "crop_pct", None),
    ("preprocess", "pad_value", [1, 2]),
    ("preprocess", "pad_value", HUGE),
    ("preprocess", "nonsense", 1),
    ("", "architecture", [1, 2]),
    ("", "preprocess", 3),
    ("", "labels", "cat"),
    ("", "labels", [1, {"a": 2}]),
    ("", "multi_label", "yes"),
    ("", "schema_version", "one"),
    ("", "task", ["classify"]),
    ("", "text_prompts", {"model": 3}),
    ("", "calibration", 3),
    ("", "calibration", {}),
    *(
        ("", "calibration", {**CALIBRATION, key: value})
        for key, value in (
            ("nonsense", 1),
            ("images", 0),
            ("images", HUGE),
            ("temperature", 0),
            ("temperature", -1.0),
            ("temperature", float("nan")),
            ("temperature", 1e300),
            ("temperature", HUGE),
            ("temperature", "1"),
            ("error", [0.1]),
            ("error", 0.1),
            ("levels", []),
            ("levels", [0.5, 1.5]),
            ("levels", [0.9, 0.5]),
            ("levels", [0.0, 0.5]),
            ("sets", [0.1]),
            ("sets", [0.1, float("inf")]),
            ("sets", [0.9, 0.1]),
            ("known", [-1, 0.1]),
            ("known", [None, 1]),
            ("penalty", 5),
            ("free_ranks", -1),
            ("free_ranks", 0.5),
        )
    ),
]
OF_ONE_TASK: dict[str, list[tuple[str, Any]]] = {
    "classify": [("num_classes", 10**9), ("num_classes", HUGE), ("global_pool", "best")],
    "mae": [("decoder_depth", 10**9), ("decoder_dim", 10**9), ("mask_ratio", float("inf"))],
    "simmim": [("mask_patch_size", 0), ("mask_ratio", True)],
    "ssl": [
        ("out", 10**9),
        ("hidden", 10**9),
        ("patch_out", 10**9),
        ("method", "byol"),
        ("temperature", 0.0),
        ("patch_loss_weight", float("inf")),
        ("queue", 8),
    ],
    "clip": [("text_layers", 10**9), ("vocab_size", 10**9), ("name", "/etc"), ("loss", "none")],
    "segment": [("decoder_dim", 10**12), ("embedding_stride", "x"), ("text_dim", 10**9)],
}


def build(task: str) -> Any:
    module, function = BUILDERS[task]
    torch.manual_seed(0)
    return getattr(importlib.import_module(module), function)(backbone=BACKBONE, **SMALL[task]).eval()


def write(folder: Path, task: str) -> dict[str, Any]:
    """A run of a task in ``folder``; gives its configuration."""
    model = build(task)
    labels = ("a", "b", "c") if task == "classify" else ()
    config = ModelConfig(task=task, architecture=model.architecture, preprocess=model.preprocess, labels=labels)
    save_bundle(model, config, folder)
    return json.loads((folder / "config.json").read_text())


def change(folder: Path, config: dict[str, Any], part: str, key: str, value: Any) -> None:
    changed = copy.deepcopy(config)
    (changed[part] if part else changed)[key] = value
    (folder / "config.json").write_text(json.dumps(changed))


@pytest.mark.usefixtures("block_network")
@pytest.mark.parametrize("task", SMALL)
def test_broken_configurations(task: str, tmp_path: Path, survived: Callable[..., None]) -> None:
    config = write(tmp_path, task)
    broken = BROKEN + [("architecture", key, value) for key, value in OF_ONE_TASK[task]]
    for part, key, value in broken:
        change(tmp_path, config, part, key, value)
        start = time.monotonic()
        with pytest.raises(ValueError) as caught:
            load_bundle(tmp_path)
        text = str(caught.value)
        assert "\n" not in text, f"{part} {key}={value}"
        assert len(text) < 2000, f"{part} {key}={value}"
        assert "root:" not in text, f"the file that {key} names was read"
        assert time.monotonic() - start < 10, f"{part} {key}={value}"
    survived("broken or hostile `config.json` of a run: refused, no network and no other file opened", len(broken))


@pytest.mark.parametrize("task", SMALL)
def test_what_is_whole_loads_as_it_was(task: str, tmp_path: Path) -> None:
    """Building on the meta device first leaves nothing behind, in caches or the model."""
    write(tmp_path, task)
    model, other = build(task), load_bundle(tmp_path)[0]
    assert {k: v.device.type for k, v in other.state_dict().items()} == dict.fromkeys(model.state_dict(), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert not any(b.is_meta for b in other.buffers())


def test_no_head_is_left_random(tmp_path: Path) -> None:
    change(tmp_path, write(tmp_path, "classify"), "architecture", "num_classes", 4)
    with pytest.raises(ValueError, match=r"head.weight \(3, 64\) instead of \(4, 64\)"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]", "null", "3", '{"task":' * 5, "[" * 100_000, "1" * 10_000, "\x00", ""])
def test_files_that_are_no_configuration(text: str, tmp_path: Path) -> None:
    write(tmp_path, "classify")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_bundle(tmp_path)


def test_a_configuration_without_end(tmp_path: Path) -> None:
    write(tmp_path, "classify")
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(ValueError, match="has 4,294,967,296 bytes"):
        read_config(tmp_path)


@pytest.mark.usefixtures("block_network")
@pytest.mark.parametrize("loader", [load_trunk, load_clip, identify, vz.SamPredictor.load, vz.ImageClassifier.load])
def test_every_loader_checks(loader: Callable[[Path], Any], tmp_path: Path) -> None:
    task = {load_clip: "clip", identify: "clip", vz.SamPredictor.load: "segment"}.get(loader, "classify")
    config = write(tmp_path, task)
    change(tmp_path, config, "architecture", "weights", "/etc/passwd")
    with pytest.raises(ValueError, match="architecture names weights '/etc/passwd', which is not followed"):
        loader(tmp_path)


@pytest.mark.usefixtures("block_network")
@pytest.mark.parametrize("model", ["hf-hub:evil/x", "/etc/passwd"])
def test_the_text_tower_of_a_run_is_not_followed(model: str, tmp_path: Path) -> None:
    config = write(tmp_path, "segment")
    change(tmp_path, config, "architecture", "text_dim", 8)
    config = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, config, "", "text_prompts", {"model": model, "template": "a {}"})
    with pytest.raises((ValueError, FileNotFoundError), match="--text-model"):
        load_text_prompts(tmp_path)


def test_the_preprocessing_beside_foreign_weights(tmp_path: Path) -> None:
    model = build("classify")
    save_bundle(model, ModelConfig(task="classify", architecture={}, preprocess=model.preprocess), tmp_path)
    for damaged in (
        {"pretrained_cfg": {"mean": 3, "std": None, "crop_pct": [], "crop_mode": {}}},
        {"schema_version": 1, "preprocess": {"image_size": "x"}},
        {"schema_version": 1, "preprocess": {}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"fit|preprocess|Preprocess"):
            vz.load_weights(model, tmp_path)


@pytest.mark.parametrize(
    ("task", "command"),
    [
        ("classify", ["predict", "RUN", "a.png"]),
        ("clip", ["zeroshot", "a.png", "--labels", "a,b", "--model", "RUN"]),
        ("clip", ["search", ".", "a", "--model", "RUN"]),
        ("segment", ["masks", "a.png", "--point", "3,3", "--model", "RUN"]),
        ("mae", ["reconstruct", "a.png", "--model", "RUN"]),
        ("classify", ["attention", "a.png", "--model", "RUN"]),
        ("classify", ["embed", ".", "--no-labels", "--model", "RUN", "--out", "a.parquet"]),
    ],
)
def test_commands_say_it_in_one_line(
    task: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    change(Path("RUN"), write(Path("RUN"), task), "architecture", "backbone", {"a": {"b": 1}})
    assert main(command) == 2
    said = capsys.readouterr()
    assert (said.out, said.err[:7], said.err.count("\n")) == ("", "error: ", 1), said
    assert "architecture.backbone" in said.err


@pytest.mark.long
def test_a_network_around_timm_is_built_in_a_fresh_process() -> None:
    """torch 2.8 could not load its compiler inside the context in which a configuration is tried."""
    code = "import visionzoo as vz; vz.SamPredictor.load('embedded')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
