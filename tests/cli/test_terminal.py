"""Names from data never command the terminal: each command, its tables, errors and warnings; data stay exact."""

from __future__ import annotations

import ast
import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.inference.classifier import describe_unreadable
from visionzoo.inference.stream import Unreadable
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.terminal import say, visible, visible_json, visible_name

PACKAGE = Path(vz.__file__).parent
#: Clear the screen, set the window's title, the 8-bit form of the escape, turn the reading direction.
EVIL = "x\x1b[2Jy\x1b]0;title\x07z\x9b2Jw\u202etxt"
ORDERS = ("\x1b[2J", "\x1b]0;", "\x9b", "\x07", "\u202e")
NANO = "vit_nano_patch4_32"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images and a broken file with such names in class folders with such names; runs with such labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    labels = (f"a{EVIL}", f"b{EVIL}", f"c{EVIL}")
    for i, label in enumerate(labels):
        for k in range(4):
            picture(Path("evil") / label / f"{k}{EVIL}.png", 10 * i + k)
    Path("evil", labels[0], f"bad{EVIL}.png").write_bytes(b"no image")
    torch.manual_seed(0)
    made = {
        "classify": vz.create_classifier(NANO, 3, image_size=32),
        "clip": vz.create_clip(backbone=NANO, text="nano", image_size=32),
        "segment": vz.create_sam(NANO, image_size=32, decoder_dim=32),
        "mae": vz.create_mae(NANO, image_size=32, decoder_dim=32, decoder_depth=1, decoder_heads=2),
    }
    for task, model in made.items():
        config = ModelConfig(
            task=task,
            architecture=model.architecture,
            preprocess=model.preprocess,
            labels=labels if task in ("classify", "clip") else (),
        )
        save_bundle(model, config, Path(f"{task}{EVIL}"))
    picture(Path(f"one{EVIL}.png"), 1)
    return tmp_path


def shown(command: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """What a command says to a terminal, both streams, and its exit status."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    status = main(command)
    monkeypatch.undo()
    return screen.getvalue(), status


ONE = f"one{EVIL}.png"
COMMANDS = [
    ["predict", f"classify{EVIL}", "evil"],
    ["predict", f"classify{EVIL}", "evil", "--csv"],
    ["predict", f"classify{EVIL}", "evil", "--json"],
    ["predict", f"missing{EVIL}", "evil"],
    ["predict", f"classify{EVIL}", f"missing{EVIL}.png"],
    ["zeroshot", "evil", "--model", f"clip{EVIL}"],
    ["zeroshot", ONE, "--labels", f"a{EVIL},b{EVIL}", "--model", f"clip{EVIL}"],
    ["zeroshot", "--data.path", "evil", "--model", f"clip{EVIL}"],
    ["search", "evil", f"a{EVIL}", "--model", f"clip{EVIL}", "--out", f"sheet{EVIL}.png"],
    ["search", "evil", f"a{EVIL}", "--model", f"clip{EVIL}", "--json"],
    ["embed", "evil", "--model", f"classify{EVIL}", "--out", f"table{EVIL}.parquet"],
    ["attention", ONE, "--model", f"classify{EVIL}", "--out", f"heat{EVIL}.png"],
    ["masks", ONE, "--point", "3,3", "--model", f"segment{EVIL}", "--out", f"masks{EVIL}.png"],
    ["reconstruct", ONE, "--model", f"mae{EVIL}", "--out", f"drawn{EVIL}.png"],
    ["probe", f"classify{EVIL}", "--data.path", "evil"],
    ["data", "check", "evil"],
    ["data", "check", f"missing{EVIL}"],
    ["models", EVIL],
    [EVIL],
    ["predict", f"--{EVIL}", "a"],
    ["train", EVIL, "fit"],
    ["train", "classify", "fit", "--data.path", f"missing{EVIL}", "--model.backbone", NANO],
    ["train", "classify", "fit", "--resume", f"missing{EVIL}"],
]


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c).replace(EVIL, ""))
def test_commands(
    command: list[str], work: Path, monkeypatch: pytest.MonkeyPatch, survived: Callable[..., None]
) -> None:
    with monkeypatch.context() as patch:
        text, status = shown(command, patch)
    assert text.strip(), "it says something"
    assert not [order for order in ORDERS if order in text], text
    assert status in (0, 1, 2)
    if "evil" in command and f"missing{EVIL}" not in command:
        assert status in (0, 1), text
        assert r"\x1b[2J" in text or "\\u001b[2J" in text, text
    survived("command over data whose names hold escape sequences: none reached the terminal")


def test_a_training_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        f"--model.backbone={NANO} --model.image_size=16 --data.num_workers=0 --trainer.max_epochs=1 --data.batch_size=4"
    )
    more = ["--data.path=evil", f"--run_dir=run{EVIL}", "--data.max_bad_share=0.9", "--trainer.accelerator=cpu"]
    with monkeypatch.context() as patch:
        text, status = shown(["train", "classify", "fit", *options.split(), *more], patch)
    assert status == 0, text
    assert not [order for order in ORDERS if order in text], text
    assert json.loads(Path(f"run{EVIL}", "config.json").read_text())["labels"][0] == f"a{EVIL}"


def test_data_for_programs_are_exact(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", f"classify{EVIL}", "evil", "--csv", "a.csv", "--top", "1"])
    main(["predict", f"classify{EVIL}", "evil", "--json", "a.json", "--top", "1"])
    capsys.readouterr()
    main(["predict", f"classify{EVIL}", "evil", "--top", "1"])
    piped = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    main(["predict", f"classify{EVIL}", "evil", "--json", "--top", "1"])
    printed = json.loads(capsys.readouterr().out)
    with open("a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert piped == rows
    records = json.loads(Path("a.json").read_text())
    assert printed == records
    good = [r for r in records if "predictions" in r]
    assert [r["image"] for r in good] == [r["image"] for r in rows if r["label"]]
    assert {p["label"] for r in good for p in r["predictions"]} <= {f"{c}{EVIL}" for c in "abc"}
    assert all(Path(r["image"]).is_file() for r in records)


def test_what_is_written_out() -> None:
    text = "caf\u00e9 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u05d0\u0628 \u732b\n\tend"
    assert visible(text) == text, "letters, emoji, lines and tabs of any script stay"
    assert visible_name("a\nb\tc\\n") == r"a\nb\tc\n"
    assert visible("\x1b[2J\x9b\x7f\r\u202e\ud800\0") == r"\x1b[2J\x9b\x7f\x0d\u202e\ud800\x00"
    value = {"a": EVIL, "\x7f": ["\u2028", "caf\u00e9"]}
    written = visible_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(written) == value
    assert not [order for order in ORDERS if order in written]


def test_errors_of_the_api_name_files_safely() -> None:
    text = describe_unreadable([Unreadable(0, EVIL, f"no {EVIL}")], 1)
    assert not [order for order in ORDERS if order in text]


def test_say(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    say()
    assert capsys.readouterr().out == visible(EVIL) + "\n\n"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_everything_is_said_through_one_door(path: Path) -> None:
    """A bare ``print`` would let names through; the recorder of facts knows only our own, and programs that are copied
    into exported folders import nothing of ours."""
    if path.name in ("terminal.py", "__main__.py") or path.parent.name == "scripts":
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    bare = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not bare, f"{path}:{bare}: use visionzoo.terminal.say"
