"""The small commands, as a user types them, in this process and without a network."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.models.bundle import ModelConfig, save_bundle

pytestmark = pytest.mark.usefixtures("block_network")

LABELS = ("cat, domestic", "dog [bold]", "zebra")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pets"
    torch.manual_seed(0)
    model = vz.create_classifier("vit_nano_patch4_32", num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = ModelConfig(task="classify", architecture=model.architecture, preprocess=model.preprocess, labels=LABELS)
    save_bundle(model, config, folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png", "c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    return folder


Answer = tuple[int, str, str]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """``cli("predict", run, ...)`` gives exit status, stdout and stderr."""

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


# predict


def test_predict_gives_csv_away_from_a_terminal(cli: Callable[..., Answer], run_folder: Path, photos: Path) -> None:
    status, out, _ = cli("predict", run_folder, photos, "--top", 2)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0
    assert list(rows[0]) == ["image", "label", "probability", "label_2", "probability_2", "error"]
    expected = vz.ImageClassifier.load(run_folder).report(photos, top_k=2)
    assert [r["image"] for r in rows] == expected.names == [str(photos / n) for n in ("a.png", "c.png", "sub/b.png")]
    for row, prediction in zip(rows, expected.predictions, strict=True):
        assert prediction is not None
        assert [row["label"], row["label_2"]] == [label for label, _ in prediction]
        assert float(row["probability_2"]) == pytest.approx(prediction[1][1], abs=1e-5)


def test_predict_writes_files(cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no")
    status, out, err = cli("predict", run_folder, photos, "--json", tmp_path / "p.json")
    assert (status, out) == (1, "")
    assert err == f"cannot read {photos / 'bad.png'}: not an image: no decoder knows this file\n"
    records = json.loads((tmp_path / "p.json").read_text())
    assert [len(r.get("predictions", [])) for r in records] == [3, 0, 3, 3]
    assert records[1]["error"].startswith("not an image")
    assert sum(a["probability"] for a in records[0]["predictions"]) == pytest.approx(1, abs=1e-5)
    cli("predict", run_folder, photos, "--csv", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["label"] for r in rows] == [r["predictions"][0]["label"] if "predictions" in r else "" for r in records]
    assert json.loads(cli("predict", run_folder, photos, "--json")[1]) == records


def test_predict_prints_a_table_for_people(
    cli: Callable[..., Answer], run_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    (photos / "bad[1].png").write_bytes(b"no")
    status, out, _ = cli("predict", run_folder, photos)
    assert status == 1
    assert f"images in {photos}" in out
    (line,) = (line for line in out.splitlines() if os.path.join("sub", "b.png") in line)
    prediction = vz.ImageClassifier.load(run_folder).predict(photos / "sub" / "b.png")[0]
    assert [line.index(f"{label}") for label, _ in prediction] == sorted(line.index(f"{label}") for label in LABELS)
    assert f"{prediction[0][1]:.1%}" in line
    assert any("bad[1].png" in line and "cannot be read" in line for line in out.splitlines())


def test_predict_never_overwrites_an_image(cli: Callable[..., Answer], run_folder: Path, photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    check_error(
        cli("predict", run_folder, photos / "c.png", "--json", photos / "a.png"), "must end in .json", "--json -"
    )
    check_error(cli("predict", run_folder, photos / "c.png", "--csv", photos / "a.png"), "must end in .csv")
    assert (photos / "a.png").read_bytes() == before


def test_predict_errors(cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path) -> None:
    check_error(cli("predict", run_folder.with_name("pet"), photos), "there is no run folder", "did you mean", "pets?")
    check_error(cli("predict", photos, photos), "is not a run folder")
    check_error(cli("predict", run_folder, tmp_path / "gone.png"), "there is no image or folder", "gone.png")
    check_error(cli("predict", run_folder, photos, "--top", 0), "--top: 0 must be at least 1")
    check_error(cli("predict", run_folder, photos, "--device", "tpu9"), "device='tpu9'")


def test_predict_takes_the_run_in_any_place(cli: Callable[..., Answer], run_folder: Path, photos: Path) -> None:
    one, two = photos / "a.png", photos / "c.png"
    expected = cli("predict", run_folder, one, two, "--top", 2)
    assert expected[0] == 0
    assert cli("predict", one, two, "--model", run_folder, "--top", 2) == expected
    assert cli("predict", "--model", run_folder, one, "--top", 2, two) == expected
    assert cli("predict", run_folder, "--top", 2, one, two) == expected
    for swapped in ((one, run_folder), (photos, run_folder), (one, "timm:resnet18")):
        check_error(cli("predict", *swapped), f"the other way round: visionzoo predict {swapped[1]} {swapped[0]}")
    check_error(cli("predict", run_folder), "visionzoo predict RUN IMAGE...")
    check_error(cli("predict", "vit_small_patch16_224", one), "name of a backbone", "timm:vit_small_patch16_224", "run")
    check_error(cli("predict", "timm/resnet18", one), "timm:resnet18")


# embed


def test_embed(cli: Callable[..., Answer], run_folder: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    (photos / "sub" / "bad.png").write_bytes(b"no")
    status, text, err = cli("embed", photos, "--model", run_folder, "--out", out, "--no-labels")
    assert (status, text) == (1, f"{out}: 3 images, 64 features each\n")
    assert err.startswith(f"left out {photos / 'sub' / 'bad.png'}: ")
    table = pq.read_table(out)
    assert table.column_names == ["id", "split", "label", "embedding"]
    np.testing.assert_allclose(
        np.array(table.column("embedding").to_pylist(), np.float32),
        vz.ImageClassifier.load(run_folder).embed([photos / n for n in ("a.png", "c.png", "sub/b.png")]).numpy(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_embed_errors(cli: Callable[..., Answer], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    check_error(
        cli("embed", photos, "--model", "vit_nano", "--out", out, "--no-labels"), "did you mean vit_nano_patch4_32"
    )
    check_error(cli("embed", tmp_path / "gone", "--model", "vit_nano_patch4_32", "--out", out), "gone")
    check_error(
        cli("embed", photos, "--model", "vit_nano_patch4_32", "--out", photos / "a.png"), "must end in .parquet"
    )
    assert not out.exists()


# models


def test_models_json_is_what_the_registry_says(cli: Callable[..., Answer]) -> None:
    status, out, _ = cli("models", "vit_nano*", "--json")
    (record,) = json.loads(out)
    info = vz.backbone_info("vit_nano_patch4_32")
    assert status == 0
    assert (record["name"], record["family"], record["params"]) == (info.name, info.family, info.params)
    assert set(record["capabilities"]) == info.capabilities
    assert record["gmacs"] == pytest.approx(info.gmacs, abs=1e-4)


def test_models_table(cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    _, wide, _ = cli("models", "vit_base_patch16_2*")
    (line,) = (line for line in wide.splitlines() if "vit_base_patch16_224 " in line)
    info = vz.backbone_info("vit_base_patch16_224")
    cells = [info.name, info.family, f"{info.params / 1e6:.1f}", f"{info.gmacs:.2f}", "224", *sorted(info.capabilities)]
    assert line.split() == [*cells, str(info.weights), *info.licence.split()]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    _, narrow, _ = cli("models", "vit_base_patch16_2*")
    assert all(len(line) <= 80 for line in narrow.splitlines())
    words = re.split(r"[\s,]+", narrow)
    assert {f"{info.family}:", str(info.weights), *info.licence.split(), *cells} - {info.family} <= set(words)


def test_models_by_capability_and_of_timm(cli: Callable[..., Answer]) -> None:
    names = [r["name"] for r in json.loads(cli("models", "*_nano_*", "--capability", "tokens", "--json")[1])]
    assert "vit_nano_patch4_32" in names
    assert all("tokens" in vz.backbone_info(n).capabilities for n in names)
    assert "swin_nano_patch2_window4_32" not in names
    (record,) = json.loads(cli("models", "resnet10t", "--timm", "--json")[1])
    assert record["name"] == "timm/resnet10t"
    status, out, err = cli("models", "--timm")
    assert status == 0
    assert len(out.splitlines()) > 500
    assert "timm/resnet50" in out.splitlines()
    assert "shows more of each" in err


def test_a_word_finds_the_models_that_contain_it(cli: Callable[..., Answer]) -> None:
    names = [r["name"] for r in json.loads(cli("models", "swin", "--json")[1])]
    assert names == vz.list_backbones("*swin*")
    (record,) = json.loads(cli("models", "vit_base_patch16_224", "--json")[1])  # samvit_base_patch16_224 contains it
    assert record["name"] == "vit_base_patch16_224"
    check_error(cli("models", "swn"), "no backbone matches 'swn'; did you mean swin")


def test_models_errors(cli: Callable[..., Answer]) -> None:
    check_error(cli("models", "vit_bse_patch16_224"), "did you mean vit_base_patch16_224")
    check_error(cli("models", "nothing_*_like_this"), "nothing_*_like_this")
    check_error(cli("models", "--capability", "flying"), "unknown capability 'flying'", "pyramid")


# data check


def test_data_check(cli: Callable[..., Answer], tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(2):
                value = 50 * i + 100 * (label == "dog")
                Image.new("RGB", (8, 9), (value, 3, 3)).save(tmp_path / split / label / f"{i}.png")
    (tmp_path / "train" / "cat" / "bad.png").write_bytes(b"")
    status, out, _ = cli("data", "check", tmp_path, "--json")
    report = json.loads(out)
    assert status == 0
    assert report["splits"]["train"]["counts"] == {"cat": 3, "dog": 2}
    assert len(report["splits"]["train"]["unreadable"]) == 1
    assert len(report["duplicates_across"]) == 4
    _, text, _ = cli("data", "check", tmp_path)
    assert "duplicates across splits: 4" in text
    check_error(cli("data", "check", tmp_path / "gone"), "gone")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--help"], "visionzoo zeroshot photo.jpg --labels cat,dog --model RUN"),
        (["predict", "--help"], "--top"),
        (["data", "check", "--help"], "PATH"),
        (["models", "--help"], "PATTERN"),
        (["models"], "vit_nano_patch4_32"),
        (["models", "swin", "--json"], "swin_nano_patch2_window4_32"),
        (["train", "--help"], "train classify --help"),
        (["train", "classify"], "score a run on held-out images"),
        (["train", "classify", "--help"], "fit --help lists the usual options"),
        (["train", "clasify", "fit"], ""),
    ],
)
def test_what_needs_no_network_loads_nothing_heavy(command: list[str], said: str) -> None:
    """torch alone takes seconds to load; each of these takes less than one, counted in the process that does it."""
    code = (
        "import sys, time\n"
        "from visionzoo.cli.main import main\n"
        "try:\n"
        f"    main({command})\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "assert not {'torch', 'timm', 'matplotlib', 'pyarrow', 'pytorch_lightning', 'numpy'} & set(sys.modules)\n"
        "assert time.process_time() < 1, time.process_time()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("args", ["models", "train --help", "train classify --help", "--help"])
def test_a_reader_that_has_seen_enough_is_no_error(args: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m visionzoo {args} | {{ exec <&-; sleep 2; }}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
