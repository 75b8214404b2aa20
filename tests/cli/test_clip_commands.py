"""``visionzoo zeroshot`` and ``visionzoo search``, as a user types them, without a network."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.models.bundle import ModelConfig, save_bundle

pytestmark = pytest.mark.usefixtures("block_network")
Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "clip"
    torch.manual_seed(0)
    model = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", text_width=32, text_heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    config = ModelConfig(
        task="clip", architecture=model.architecture, preprocess=model.preprocess, labels=("a car", "a boat")
    )
    save_bundle(model, config, folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i, name in enumerate(("cat/a.png", "cat/b.png", "wild_dog/c.png", "wild_dog/d.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 60 + 60 * i, (40, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*args: object) -> Answer:
        try:
            status = main([str(a) for a in args])
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, re.sub(r"\x1b\[[0-9;]*m", "", out), err

    return call


def check_error(answer: Answer, *parts: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_zeroshot_names_images(cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path) -> None:
    status, out, _ = cli("zeroshot", photos, "--labels", "cat, wild dog,horse", "--model", run_folder, "--top", 2)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0
    zs = vz.ZeroShotClassifier.load(run_folder, ["cat", "wild dog", "horse"], "a photo of a {}.", device="cpu")
    for row, prediction in zip(rows, zs.predict(photos, 2), strict=True):
        assert [row["label"], row["label_2"]] == [label for label, _ in prediction]
        assert float(row["probability"]) == pytest.approx(prediction[0][1], abs=1e-5)
    (tmp_path / "labels.txt").write_text("cat\n\nwild dog\nhorse\n")
    again = cli("zeroshot", photos, "--labels", tmp_path / "labels.txt", "--model", run_folder, "--top", 2)
    assert again[1] == out
    (tmp_path / "labels.txt").write_text("cat\r\n\r\nwild dog\r\nhorse\r\n", encoding="utf-16")
    assert cli("zeroshot", photos, "--labels", tmp_path / "labels.txt", "--model", run_folder, "--top", 2)[1] == out
    (tmp_path / "labels.txt").write_bytes("cat\nchät\n".encode("latin-1"))
    refused = cli("zeroshot", photos, "--labels", tmp_path / "labels.txt", "--model", run_folder)
    check_error(refused, "labels.txt line 2 is not UTF-8", "iconv")
    assert len(list((tmp_path / "cache" / "visionzoo" / "texts").iterdir())) == 1


@pytest.mark.long
def test_zeroshot_options(cli: Callable[..., Answer], run_folder: Path, photos: Path) -> None:
    one = photos / "cat" / "a.png"
    (record,) = json.loads(cli("zeroshot", one, "--model", run_folder, "--json")[1])
    assert {p["label"] for p in record["predictions"]} == {"a car", "a boat"}  # the run's own
    labels = ("--labels", "cat,dog", "--model", run_folder)
    for given, wanted in (
        (["imagenet"], "imagenet"), (["none"], None), (["a {}", "one {}"], ["a {}", "one {}"]), (["my {}"], "my {}"),
    ):  # fmt: skip
        options = [part for t in given for part in ("--templates", t)]
        (record,) = json.loads(cli("zeroshot", one, *labels, *options, "--json")[1])
        expected = vz.ZeroShotClassifier.load(run_folder, ["cat", "dog"], wanted, device="cpu").predict(one)[0]
        assert [p["label"] for p in record["predictions"]] == [label for label, _ in expected]
        assert record["templates"] == ("2 of the caller's own" if len(given) > 1 else given[0])
        assert record["predictions"][0]["probability"] == pytest.approx(expected[0][1], abs=1e-5)
    (record,) = json.loads(cli("zeroshot", one, *labels, "--unknown", 0.999, "--json")[1])
    assert record["predictions"][0]["label"] == "unknown"
    (record,) = json.loads(cli("zeroshot", one, *labels, "--multi-label", "--json")[1])
    assert sum(p["probability"] for p in record["predictions"]) != pytest.approx(1, abs=1e-3)


def test_zeroshot_scores_labelled_data(
    cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    options = ("--data.path", photos, "--model", run_folder, "--out", tmp_path / "m.png")
    status, out, err = cli("zeroshot", *options, "--json", tmp_path / "score.json")
    assert status == 0
    record = json.loads((tmp_path / "score.json").read_text())
    assert record["labels"] == ["cat", "wild dog"]
    assert record["images"] == 4
    assert record["templates"] == "a photo of a {}."
    assert out.startswith(f"accuracy {100 * record['accuracy']:.2f} % of 4 images, 2 labels (chance 50.00 %)\n")
    assert "true \\ named  cat  wild dog\n" in out
    assert "\ntemplates: a photo of a {}.\n" in out
    assert str(tmp_path / "m.png") in err
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.width > 200
    (photos / "cat" / "bad.png").write_bytes(b"no")
    status, _, err = cli("zeroshot", "--data.path", photos, "--model", run_folder)
    assert status == 1
    assert f"cannot read {photos / 'cat' / 'bad.png'}: not an image" in err


def test_zeroshot_scores_a_folder_of_class_folders(
    cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Labels may come from the folders. Where the user's hold theirs, there is a row for each image as well."""
    bare = tmp_path / "bare"
    shutil.copytree(run_folder, bare)
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "labels": []}))
    expected = cli("zeroshot", "--data.path", photos, "--model", bare)[1]
    assert expected.startswith("accuracy")
    assert cli("zeroshot", photos, "--model", bare) == (0, expected, "")
    labels = ("--labels", "cat,wild dog,horse")
    _, score, _ = cli("zeroshot", "--data.path", photos, "--model", bare, *labels)
    status, out, err = cli("zeroshot", photos, "--model", bare, *labels, "--out", tmp_path / "m.png")
    assert status == 0
    assert len(list(csv.DictReader(io.StringIO(out)))) == 4
    assert err == f"templates: a photo of a {{}}.\n{score}written to {tmp_path / 'm.png'}\n"
    assert (tmp_path / "m.png").is_file()
    (photos / "loose.png").write_bytes((photos / "cat" / "a.png").read_bytes())  # no tree of classes any more
    check_error(cli("zeroshot", photos, "--model", bare), '--labels "cat,dog"')
    check_error(cli("zeroshot", photos / "loose.png", "--model", bare), '--labels "cat,dog"')


def test_a_clip_needs_weights_and_takes_them_by_name(
    cli: Callable[..., Answer], run_folder: Path, photos: Path
) -> None:
    for command in (("zeroshot", photos / "cat" / "a.png", "--labels", "a,b"), ("search", photos, "a cat")):
        check_error(cli(*command, "--model", "ViT-B-32"), "--model ViT-B-32 --weights FILE", "hf-hub:")
    check_error(cli(*command, "--model", "ViT-B-32", "--weights", "gone.bin"), "gone.bin")
    check_error(cli("search", "a cat", photos, "--model", run_folder), "the other way round", f'{photos} "a cat"')


def test_zeroshot_errors(cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path) -> None:
    model = ("--model", run_folder)
    check_error(cli("zeroshot", *model), "images to name, or labelled data")
    check_error(cli("zeroshot", photos, "--data.path", photos, *model), "images to name, or labelled data")
    check_error(cli("zeroshot", photos, *model, "--labels", "cat,,dog"), "label 1 is empty")
    check_error(cli("zeroshot", photos, *model, "--labels", "cat,Cat"), "is there already")
    check_error(cli("zeroshot", photos, *model, "--templates", "a photo"), "must have one {}")
    check_error(cli("zeroshot", photos, *model, "--unknown", 2), "unknown=2.0")
    check_error(cli("zeroshot", photos, *model, "--out", tmp_path / "m.png"), "needs --data.path")
    check_error(cli("zeroshot", "--data.path", photos, *model, "--csv"), "use --json")
    check_error(cli("zeroshot", "--data.path", photos, *model, "--labels", "cat,horse"), "no label for 1 of the 2")
    check_error(cli("zeroshot", photos, *model, "--json", photos / "cat" / "a.png"), "must end in .json")
    check_error(cli("zeroshot", photos, "--model", tmp_path / "nothing", "--labels", "a,b"), "nothing")


def test_search(cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    options = ("--model", run_folder, "--top", 3)
    command = ("search", photos, "a red car", *options)
    status, out, err = cli(*command, "--out", sheet)
    assert status == 0
    assert err.startswith("4 images, 4 of them new or changed\n")
    found = vz.ImageSearch.load(run_folder, cache_dir=tmp_path / "other", device="cpu").index(photos)
    best = found.find("a red car", 3)
    assert out.splitlines() == ["a red car", *(f"  {m.score:6.3f}  {m.path}" for m in best)]
    with Image.open(sheet) as picture:
        assert picture.width > 3 * 176
    status, out, err = cli(
        "search", photos, "a red car", "a dog", *options, "--image", photos / "cat" / "b.png", "--json"
    )
    assert err.startswith("4 images, 0 of them new or changed\n")
    records = json.loads(out)
    assert [r["query"] for r in records] == ["a red car", "a dog", str(photos / "cat" / "b.png")]
    assert [m["image"] for m in records[0]["matches"]] == [m.path for m in best]
    assert records[2]["matches"][0]["image"] == str(photos / "cat" / "b.png")
    (photos / "bad.png").write_bytes(b"no")
    (photos / "cat" / "a.png").unlink()
    status, _, err = cli(*command)
    assert status == 1
    assert "3 images, 0 of them new or changed, 1 gone since\n" in err
    assert f"cannot read {photos / 'bad.png'}" in err


def test_search_errors(cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path) -> None:
    model = ("--model", run_folder)
    check_error(cli("search", photos, *model), "say what to look for")
    check_error(cli("search", tmp_path / "none", "a dog", *model), "there is no folder")
    check_error(cli("search", photos, "a dog", *model, "--out", "sheet.txt"), "must end in one of")
    own = photos / "cat" / "a.png"
    check_error(cli("search", photos, *model, "--image", own, "--out", own), "is the image itself")
    answer = cli("search", photos, " ", *model)
    assert answer[0] == 2
    assert "query 0 is empty" in answer[2]
