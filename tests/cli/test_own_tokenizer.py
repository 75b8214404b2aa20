"""A CLIP whose tokenizer is not part of visionzoo takes it along: what moves the run moves all of it."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn import functional as F
from words import word_tokenizer

import visionzoo as vz
from visionzoo.cli import main as visionzoo
from visionzoo.cli import train as cli
from visionzoo.export.clip_model import ExportedClip
from visionzoo.export.predictors import load_exported
from visionzoo.inference.load_clip import load_clip
from visionzoo.models import carried
from visionzoo.weights.hub import own_folder

MODEL = {
    "backbone": "vit_nano_patch4_32", "image_size": 16, "text_width": 32, "text_layers": 1, "text_heads": 2,
    "embed_dim": 32, "context_length": 12, "tokenizer": "words",
}  # fmt: skip
TEXTS = ["a red square", "blue"]


def words(folder: str, *more: str, rule: str = "[S] $A [E]") -> None:
    """A tokenizer of transformers, beside something large that is none of its files."""
    word_tokenizer(folder, *more, rule=rule)
    Path(folder, "model.safetensors").write_bytes(b"weights")


def fit(folder: str, *options: str, **model: Any) -> int:
    data = {"path": "shapes:24", "batch_size": 8, "num_workers": 0}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "limit_val_batches": 1}
    Path("config.yaml").write_text(yaml.safe_dump({"model": MODEL | model, "data": data, "trainer": trainer}))
    return cli.run(["clip", "fit", "--config", "config.yaml", "--run_dir", folder, *options])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was stopped after two steps, in another place than it was trained in; its tokenizer is gone."""
    monkeypatch.chdir(tmp_path)
    words("words")
    assert fit("trained", "--trainer.max_steps", "2") == 0
    torch.save(answers("trained"), "want.pt")
    shutil.rmtree("words")
    Path("elsewhere").mkdir()
    shutil.move("trained", "elsewhere/run")
    return "elsewhere/run"


def answers(source: Any) -> torch.Tensor:
    model = load_clip(source, device="cpu")[0]
    with torch.inference_mode():
        return model.encode_text(model.tokenizer(TEXTS))


def test_it_answers_where_it_was_moved_to(run: str) -> None:
    held = {path.name for path in Path(run, "tokenizer").iterdir()}
    assert "tokenizer.json" in held
    assert "model.safetensors" not in held
    assert json.loads(Path(run, "config.json").read_text())["architecture"]["tokenizer"] == "tokenizer"
    torch.testing.assert_close(answers(run), torch.load("want.pt"))


@pytest.mark.long
def test_it_goes_on_and_is_a_beginning(run: str, capsys: Any) -> None:
    assert cli.run(["clip", "fit", "--resume", run, "--trainer.max_steps", "-1"]) == 0
    assert "goes on at step 2" in capsys.readouterr().out
    assert yaml.safe_load(Path(run, "config.yaml").read_text())["model"]["tokenizer"] == "words"
    assert cli.run(["clip", "fit", "--resume", run, "--trainer.max_steps", "-1"]) == 0  # twice, and nothing to do
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["model"] = {"weights": run}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert cli.run(["clip", "fit", "--config", "config.yaml", "--run_dir", "second", "--trainer.max_steps", "1"]) == 0
    shutil.rmtree("elsewhere")
    assert answers("second").shape == (2, 32)


@pytest.mark.long
def test_it_is_in_a_soup_a_repository_and_an_export(run: str, capsys: Any) -> None:
    shutil.copytree(run, "other")
    assert visionzoo.main(["soup", run, "other", "--out", "soup"]) == 0
    torch.testing.assert_close(answers("soup"), torch.load("want.pt"))
    file = Path("other/tokenizer/tokenizer.json")
    file.write_text(file.read_text().replace("blue", "teal"))
    assert visionzoo.main(["soup", run, "other", "--out", "no"]) == 2
    assert "differs" in capsys.readouterr().err

    assert visionzoo.main(["push", run, "me/words", "--out", "repository"]) == 0
    torch.testing.assert_close(answers("repository"), torch.load("want.pt"))

    pytest.importorskip("onnxruntime")
    assert visionzoo.main(["export", run, "--out", "exported"]) == 0
    shutil.rmtree("elsewhere")
    shutil.move("exported", "moved")
    assert "tokenizer/tokenizer.json" in Path("moved/SHA256SUMS").read_text()
    towers = ExportedClip("moved", load_exported("moved"))  # type: ignore[arg-type]
    found = towers.encode_text(towers.tokenizer(TEXTS))
    torch.testing.assert_close(found, F.normalize(torch.load("want.pt"), dim=-1), rtol=1e-4, atol=1e-5)
    assert "elsewhere" not in Path("moved/preprocess.json").read_text()
    assert visionzoo.main(["zeroshot", "moved/README.md", "--labels", "red,blue", "--model", "moved"]) == 2
    assert "moved holds two towers without labels; give the run, or export" in capsys.readouterr().err
    file = Path("moved/tokenizer/tokenizer.json")
    file.write_text(file.read_text().replace("blue", "teal"))
    with pytest.raises(ValueError, match=r"was changed after it was exported: .?tokenizer/tokenizer\.json"):
        load_exported("moved")


def test_the_hub_gives_it_too(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that has all but the folder; what is asked for is what is missing."""
    import huggingface_hub

    cache = tmp_path / "cache"
    snapshot = cache / "models--me--words" / "snapshots" / "0123"
    shutil.copytree(run, snapshot, ignore=shutil.ignore_patterns("tokenizer"))
    refs = cache / "models--me--words" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("visionzoo.weights.hub.hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: None)
    asked = []

    def download(repository: str, *, allow_patterns: str, **_: Any) -> None:
        asked.append((repository, allow_patterns))
        shutil.copytree(Path(run, "tokenizer"), snapshot / "tokenizer")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert own_folder("me/words") == snapshot
    assert own_folder("me/words") == snapshot
    assert asked == [("me/words", "tokenizer/*")]
    torch.testing.assert_close(answers(snapshot), torch.load("want.pt"))


def test_what_cannot_be_taken_along_stays_as_it_was(tmp_path: Path) -> None:
    for name in (None, "clip", "", str(tmp_path / "gone"), str(tmp_path)):
        assert carried.carry({"tokenizer": name, "x": 1}, tmp_path / "to") == {"tokenizer": name, "x": 1}
    assert not (tmp_path / "to").exists()
    words(str(tmp_path / "words"))
    options = carried.carry({"tokenizer": str(tmp_path / "words")}, tmp_path / "to")
    assert options == {"tokenizer": "tokenizer"}
    at = carried.placed(options, tmp_path / "to")
    assert at == carried.copies_in(tmp_path / "to") == {"tokenizer": str(tmp_path / "to" / "tokenizer")}
    assert carried.carry(at, tmp_path / "to") == options
    words(str(tmp_path / "others"), "teal", "lime")
    assert carried.carry({"tokenizer": str(tmp_path / "others")}, tmp_path / "to") == options  # another takes its place
    assert "lime" in (tmp_path / "to/tokenizer/tokenizer.json").read_text()
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["tokenizer"]


def test_the_text_tower_is_as_the_tokenizer_says(tmp_path: Path) -> None:
    words(str(tmp_path / "words"))
    build = partial(vz.create_clip, backbone="vit_nano_patch4_32", text="nano", tokenizer=str(tmp_path / "words"))
    model = build()
    assert (model.vocab_size, model.text.config.end_id) == (8, 2)
    assert model.architecture["vocab_size"] == 8
    assert build(vocab_size=20, end_id=2).vocab_size == 20
    with pytest.raises(FileNotFoundError, match="neither 'clip' nor a folder"):
        build(tokenizer=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="holds no tokenizer"):
        build(tokenizer=str(tmp_path))
    for rule in ("$A", "[S] $A"):
        words(str(tmp_path / "open"), rule=rule)
        with pytest.raises(ValueError, match="puts no token at the end of a text"):
            build(tokenizer=str(tmp_path / "open"))
