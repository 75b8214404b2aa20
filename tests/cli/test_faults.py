"""What a training command does when something is wrong around it: one line, nothing lost."""

from __future__ import annotations

import csv
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from visionzoo import viz
from visionzoo.cli import main
from visionzoo.cli import train as cli
from visionzoo.data.sources.labels import encode_labels
from visionzoo.inference import features

CONFIG = {
    "model": {"backbone": "vit_nano_patch4_32", "image_size": 16},
    "data": {"path": "digits", "batch_size": 32, "eval_batch_size": 256, "num_workers": 0, "train_limit": 64},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 1},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_configuration()
    return tmp_path


def write_configuration() -> None:
    Path("small.yaml").write_text(yaml.safe_dump(CONFIG))


def fit(*options: str) -> int:
    return cli.run(["classify", "fit", "--config", "small.yaml", *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        write_configuration()
        assert fit("--run_dir", "run") == 0
        return Path("run").absolute()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("ran").touch, ())


@pytest.mark.long
def test_resuming(trained: Path, capsys: Any, recwarn: Any) -> None:
    """One run, four states of its checkpoints: finished, damaged, lost but for the best one, best one damaged."""
    shutil.copytree(trained, "run")
    resume = ["classify", "fit", "--resume", "run"]

    assert cli.run(resume) == 0
    assert "nothing was left to train" in capsys.readouterr().out

    last = Path("run/last.ckpt")
    whole = last.read_bytes()
    for damaged, message in (
        (whole[: len(whole) // 2], "is no whole checkpoint"),
        (pickle.dumps(Evil()), "holds objects, which could run code"),
    ):
        last.write_bytes(damaged)
        assert cli.run(resume) == 2
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(err) == 1
        assert message in err[0]
        assert "move it away to go on from best.ckpt" in err[0]
    assert not Path("ran").exists()

    last.unlink()
    assert cli.run([*resume, "--trainer.max_epochs", "2"]) == 0
    assert any("going on from best.ckpt" in str(w.message) for w in recwarn)
    assert last.is_file()

    best = Path("run/best.ckpt")
    for damaged in (best.read_bytes()[:5000], b"hello", pickle.dumps(Evil())):
        best.write_bytes(damaged)
        recwarn.clear()
        assert cli.run(resume) == 0
        assert any("best.ckpt" in str(w.message) and "goes on from last.ckpt" in str(w.message) for w in recwarn)
    assert not Path("ran").exists()


def test_a_full_disk_at_the_pictures_does_not_take_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, recwarn: Any
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(viz, "learning_curves", full)
    monkeypatch.setattr(viz, "mistakes_sheet", full)
    assert fit("--run_dir", "run") == 1  # a script hears that something is missing
    said = capsys.readouterr()
    assert "top-1 accuracy" in said.out
    assert any("could not write run" in str(w.message) and "No space left" in str(w.message) for w in recwarn)
    assert "pictures (No space left on device)" in said.out + said.err


def test_predict_lists_what_it_could_not_read(trained: Path, recwarn: Any) -> None:
    Path("new").mkdir()
    Image.new("RGB", (16, 16)).save("new/good.png")
    Path("new/empty.png").touch()
    data = ["--data.path", "digits", "--data.predict_path", "new", "--data.num_workers", "0"]
    more = ["--model.weights", str(trained), "--run_dir", "said", "--trainer.accelerator", "cpu"]
    assert cli.run(["classify", "predict", *data, *more]) == 0
    with Path("said/bad_samples.csv").open() as file:
        assert [(Path(r["sample"]).name, r["split"]) for r in csv.DictReader(file)] == [("empty.png", "predict")]
    assert any("1 images could not be read and have no row" in str(w.message) for w in recwarn)


def test_epoch_lines_are_means_over_the_epoch(capsys: Any) -> None:
    """Not the last batch's values, which say little in small batches."""
    assert fit("--run_dir", "run", "--data.batch_size", "16", "--trainer.log_every_n_steps", "1") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1/1"))
    with Path("run/metrics.csv").open() as file:
        steps = [float(r["train/loss"]) for r in csv.DictReader(file) if r["train/loss"]]
    assert len(steps) == 4
    assert f"train/loss {sum(steps) / 4:.4g}" in line


@pytest.mark.parametrize("labels", [["0", "1", "-1"], ["-3", "2"]])
def test_negative_numbers_as_text_are_out_of_range(labels: list[str]) -> None:
    with pytest.raises(ValueError, match=r"label -\d is out of range; class numbers start at 0"):
        encode_labels(labels, None, lambda i: f"line {i + 1}")


def test_a_name_that_looks_negative_among_names_is_a_name() -> None:
    assert encode_labels(["-1", "cat"], None, str)[0] == ("-1", "cat")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"data:\n  path: d\xe4ta\n", "odd.yaml line 2 is not UTF-8"),
        ("data: {path: digits}\n".encode("utf-16"), "odd.yaml is UTF-16; save it as UTF-8"),
        (b"data: " + b"[" * 10_000, "odd.yaml is nested too deeply to be read"),
        (b"data: {path: digits", "odd.yaml is not valid YAML"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_line(capsys: Any, data: bytes, message: str) -> None:
    Path("odd.yaml").write_bytes(data)
    assert cli.run(["classify", "fit", "--config", "odd.yaml"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_look_that_is_stopped_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole, chunks = features._chunk_features, []

    def stop(*args: Any) -> Any:
        chunks.append(args)
        if len(chunks) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(features, "_chunk_features", stop)
    look = ["data", "doctor", "digits", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert main.main(look) == 130
    assert "stopped. 1,024 of 1,797 images are kept: go on with the same command" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "features")

    monkeypatch.setattr(features, "_chunk_features", full)
    assert main.main(["data", "doctor", "digits", "--cache", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "error: No space left on device: features; free some space, and start the same command again\n"
    )
