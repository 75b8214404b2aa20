"""``visionzoo push``, and the way back: huggingface_hub's own client against a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import visionzoo as vz
from tests.hub.fake_hub import FakeHub
from visionzoo.cli.main import main
from visionzoo.embedded import EMBEDDED
from visionzoo.runs.folder import RunFolder
from visionzoo.runs.lineage import Ancestor, lineage_of, lineage_of_run

NAMES = ("one<b>", "two|three", *(str(k) for k in range(2, 10)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with scores, a record, a picture, and names that must not act."""
    folder = tmp_path / "run [x](y)"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(EMBEDDED / "digits" / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "labels": list(NAMES)}))
    scores = {"stage": "val", "which": "best epoch", "scores": {"accuracy": 0.9778, "loss": 0.15}}
    (folder / "results.json").write_text(json.dumps(scores))
    session = {
        "command": "train.py", "seed": 0, "minutes": 1.5, "machine": {"cpus": 2, "gpus": []},
        "data": {"path": "/home/somebody/digits", "fingerprint": "5d9e"}, "ancestors": [],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, "sessions": [session]}))
    Image.new("RGB", (1200, 800), "white").save(folder / "curves.png")
    return folder


def commands(hub: FakeHub, home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_TOKEN": "hf_secret", "NO_PROXY": "*"}
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "visionzoo", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.long
def test_there_and_back(run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "three.png"
    Image.fromarray(vz.load_image(picture)) if picture.exists() else Image.new("L", (16, 16), 200).save(picture)
    with FakeHub() as hub:
        pushed = commands(hub, tmp_path / "home", "push", str(run), "me/digits-nano", "--private")
        assert pushed.returncode == 0, pushed.stderr
        assert f"published at {hub.address}/me/digits-nano, licence apache-2.0" in pushed.stdout
        assert hub.private
        assert set(hub.files) == {"README.md", "config.json", "lineage.json", "model.safetensors", "preview.webp"}
        assert hub.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
        asked = ("predict", "hf-hub:me/digits-nano", str(picture), "--json", "-")
        there = commands(hub, tmp_path / "elsewhere", *asked)
        assert there.returncode == 0, there.stderr
    here = commands(hub, tmp_path / "home", "predict", str(run), str(picture), "--json", "-")
    assert json.loads(there.stdout)[0]["predictions"] == json.loads(here.stdout)[0]["predictions"]
    # the hub is gone, and the copy in the cache answers
    again = commands(hub, tmp_path / "elsewhere", *asked)
    assert again.returncode == 0, again.stderr


@pytest.mark.long
def test_a_hub_that_refuses_and_one_that_is_away(run: Path, tmp_path: Path) -> None:
    with FakeHub(refuses=True) as hub:
        done = commands(hub, tmp_path, "push", str(run), "me/digits")
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not let you write to me/digits (status 403); run `hf auth login`" in done.stderr
    done = commands(hub, tmp_path, "push", str(run), "me/digits")
    assert done.returncode == 2
    assert "the hub cannot be reached; connect, or write the folder alone by --out FOLDER" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    for asked in (("predict", "hf-hub:me/gone", "x.png"), ("report", "hf-hub:me/gone")):
        done = commands(hub, tmp_path, *asked)
        assert done.returncode == 2
        assert (
            "hf-hub:me/gone is no run that `visionzoo push` has published, or the hub cannot be reached" in done.stderr
        )


def test_the_card_says_what_is_known_and_lets_nothing_act(run: Path, tmp_path: Path) -> None:
    assert main(["push", str(run), "me/digits", "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    body = card.removeprefix("---\n").split("\n---\n")[1]
    from huggingface_hub import ModelCard

    read = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (read.license, read.library_name, read.pipeline_tag) == ("apache-2.0", "visionzoo", "image-classification")
    assert read.eval_results[0].metric_value == 0.9778
    known = (
        "97.78 %",
        "1.5",
        "fingerprint 5d9e",
        "hf-hub:me/digits",
        "one&lt;b&gt;",
        r"two\|three",
        "preview.webp",
    )
    for expected in known:
        assert expected in body, expected
    assert "somebody" not in card
    assert "<b>" not in body
    with Image.open(tmp_path / "out" / "preview.webp") as preview:
        assert max(preview.size) <= 900
    assert lineage_of_run(RunFolder(tmp_path / "out")) == ()
    assert main(["push", str(run), "me/digits", "--out", str(tmp_path / "out")]) == 2  # it exists


def test_ancestors_are_recorded_with_their_licences(tmp_path: Path) -> None:
    assert lineage_of([None]) == ()
    assert lineage_of(["embedded:digits"]) == (Ancestor(name="embedded:digits", licence="apache-2.0"),)
    (timm,) = lineage_of(["timm:vit_small_patch16_224.augreg_in21k_ft_in1k"])
    assert timm.licence == "apache-2.0"
    folder = tmp_path / "fetched"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: CC-BY-NC-4.0\n---\n")
    (folder / "lineage.json").write_text(json.dumps({"ancestors": [{"name": "older", "licence": "mit"}]}))
    found = lineage_of([str(folder), str(folder), str(tmp_path / "some.pth")])
    assert [(a.name, a.licence) for a in found] == [
        ("fetched", "cc-by-nc-4.0"), ("older", "mit"), ("some.pth", "unknown"),
    ]  # fmt: skip
    (folder / "lineage.json").write_text('{"ancestors": [3]}')
    with pytest.raises(ValueError, match="no list of ancestors"):
        lineage_of([str(folder)])


@pytest.mark.parametrize(
    ("ancestors", "wish", "result"),
    [
        ([], None, "apache-2.0"),
        ([], "MIT", "mit"),
        ([("a", "mit"), ("b", "apache-2.0")], None, "apache-2.0"),
        ([("a", "cc-by-nc-4.0")], None, "cc-by-nc-4.0"),
        ([("a", "cc-by-nc-4.0")], "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ([("a", "unknown")], "mit", "mit"),
    ],
)
def test_what_may_be_published(run: Path, tmp_path: Path, ancestors: list, wish: str | None, result: str) -> None:
    record_ancestors(run, ancestors)
    out = tmp_path / "out"
    assert main(["push", str(run), "me/x", "--out", str(out), *(["--licence", wish] if wish else [])]) == 0
    assert f"license: {result}" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("ancestors", "wish", "said"),
    [
        (
            [("dino-v3", "dinov3-license")],
            "mit",
            "dino-v3, whose licence dinov3-license does not allow",
        ),
        ([("art", "cc-by-nc-nd-4.0")], "cc-by-nc-nd-4.0", "art, whose licence cc-by-nc-nd-4.0 forbids"),
        ([("a", "dinov3-license"), ("b", "cc-by-nc-4.0")], None, "b, whose licence cc-by-nc-4.0 does not allow"),
        ([("mystery", "unknown")], None, "mystery, and nothing says under which licence"),
    ],
)
def test_what_may_not(run: Path, tmp_path: Path, capsys, ancestors: list, wish: str | None, said: str) -> None:
    record_ancestors(run, ancestors)
    out = tmp_path / "out"
    assert main(["push", str(run), "me/x", "--out", str(out), *(["--licence", wish] if wish else [])]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def record_ancestors(run: Path, ancestors: list) -> None:
    record = json.loads((run / "run.json").read_text())
    record["sessions"][-1]["ancestors"] = [{"name": name, "licence": licence} for name, licence in ancestors]
    (run / "run.json").write_text(json.dumps(record))


def test_bad_names(run: Path, capsys) -> None:
    for name, said in (("digits", "names no owner"), ("a/b/c", "cannot name a repository"), ("me/a b", "cannot name")):
        assert main(["push", str(run), name]) == 2
        assert said in capsys.readouterr().err
    assert main(["push", "nowhere", "me/x"]) == 2
