"""``train.py classify ...`` from the command line to the files of the run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import visionzoo as vz
from visionzoo.cli import train as cli
from visionzoo.cli.main import main
from visionzoo.tasks.engine.interrupt import Interrupt

ROOT = Path(__file__).parents[2]
CONFIG = {
    "model": {"backbone": "vit_nano_patch4_32", "image_size": 16, "lr": 2e-3, "mixup": 0.2, "global_pool": "avg"},
    "data": {"path": "digits", "batch_size": 32, "eval_batch_size": 256, "num_workers": 0, "train_limit": 128},
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "limit_val_batches": 1},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def fit(*options: str) -> int:
    return cli.run(["classify", "fit", "--config", "small.yaml", *options])


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_fit_leaves_a_whole_run_folder_and_prints_accuracy_and_place(folder: Path, capsys: Any) -> None:
    assert fit() == 0
    run = folder / "runs" / "classify-digits-vit_nano_patch4_32"
    made = {p.name.split(".1")[0].split(".0")[0] for p in run.iterdir()}
    assert {
        "config.yaml", "run.json", "metrics.csv", "last.ckpt", "best.ckpt", "model.safetensors", "config.json",
        "curves.png", "confusion_matrix.png", "mistakes.png", "per_class.csv",
    } <= made  # fmt: skip
    assert any(p.name.startswith("events.out.tfevents") for p in run.iterdir())
    assert not (run / "hparams.yaml").exists()
    out = capsys.readouterr().out
    best = max(float(r["val/accuracy"]) for r in rows(run / "metrics.csv") if r["val/accuracy"])
    assert f"top-1 accuracy {100 * best:.2f} %, top-5" in out
    assert "on 256 held-out images" in out
    assert f"run folder: {run.relative_to(folder)}" in out


def test_a_stopped_run_has_its_curves_and_its_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Interrupt.on_train_batch_end

    def stop(interrupt: Interrupt, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 6:  # of 8, in the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        whole(interrupt, trainer, *args)

    monkeypatch.setattr(Interrupt, "on_train_batch_end", stop)
    assert fit("--run_dir", "run") == 130
    assert "--resume run" in capsys.readouterr().err
    assert (folder / "run" / "curves.png").is_file()
    assert "val/accuracy" in (folder / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_saved_config_reruns_the_run(folder: Path) -> None:
    assert fit("--model.lr", "0.003", "--run_dir", "first") == 0
    saved = yaml.safe_load(Path("first/config.yaml").read_text())
    assert saved["model"]["lr"] == 0.003
    assert not {"run_dir", "ckpt_path", "config"} & set(saved)
    assert cli.run(["classify", "fit", "--config", "first/config.yaml"]) == 0
    again = folder / "runs" / "classify-digits-vit_nano_patch4_32"
    assert rows("first/metrics.csv") == rows(again / "metrics.csv")
    ours, theirs = load_file("first/model.safetensors"), load_file(again / "model.safetensors")
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    text = Path("first/config.yaml").read_text().split("\n", 1)[1]
    assert text == (again / "config.yaml").read_text().split("\n", 1)[1]


@pytest.mark.long
def test_resume_goes_on_in_the_folder(folder: Path) -> None:
    assert fit("--run_dir", "whole", "--trainer.max_epochs", "3") == 0
    assert fit("--run_dir", "cut", "--trainer.max_epochs", "3", "--trainer.max_steps", "4") == 0
    options = ["--config", "small.yaml", "--resume", "cut", "--trainer.max_steps=-1"]
    # a schedule cut at 4 steps is another schedule: only the length of the run and its place are compared
    assert cli.run(["classify", "fit", *options]) == 0
    assert torch.load("cut/last.ckpt", weights_only=True)["global_step"] == 12
    assert [r["step"] for r in rows("cut/metrics.csv")] == [r["step"] for r in rows("whole/metrics.csv")]
    assert fit("--run_dir", "whole") == 2  # it holds a run


@pytest.mark.long
def test_validate_test_and_predict_a_run(folder: Path, capsys: Any) -> None:
    assert fit("--run_dir", "first") == 0
    accuracy = capsys.readouterr().out.split("top-1 accuracy ")[1].split(" %")[0]
    data = ["--data.path", "digits", "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
    common = [*data, "--model.weights", "first", "--data.eval_batch_size", "256"]
    assert cli.run(["classify", "validate", *common, "--trainer.limit_val_batches", "1", "--run_dir", "seen"]) == 0
    assert f"top-1 accuracy {accuracy} %" in capsys.readouterr().out
    assert Path("seen/per_class.csv").is_file()
    assert cli.run(["classify", "predict", *common, "--trainer.limit_predict_batches", "1", "--run_dir", "said"]) == 0
    said = rows("said/predictions.csv")
    assert len(said) == 256
    assert set(said[0]) == {"image", "label", "probability"}


def test_early_stopping_counts_validations_without_a_better_score(folder: Path) -> None:
    assert fit("--early_stopping", "1", "--model.lr", "1e-12", "--trainer.max_epochs", "9", "--run_dir", "still") == 0
    assert len([r for r in rows("still/metrics.csv") if r["val/accuracy"]]) == 2


@pytest.mark.slow
def test_bf16_compile_accumulation_and_checkpointing_together(folder: Path) -> None:
    options = ["--trainer.precision", "bf16-mixed", "--model.compile", "true", "--trainer.accumulate_grad_batches", "2"]
    assert fit(*options, "--model.grad_checkpointing", "true", "--run_dir", "all") == 0
    assert torch.load("all/last.ckpt", weights_only=True)["global_step"] == 4
    assert Path("all/model.safetensors").is_file()


def test_print_groups_prints_and_trains_nothing(folder: Path, capsys: Any) -> None:
    assert fit("--print_groups", "true", "--model.layer_decay", "0.5") == 0
    out = capsys.readouterr().out
    assert "head.weight" in out
    assert len(out.splitlines()) == 1 + 2 * 6
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["classify", "fit", "--model.lrr", "3"], "unknown option --model.lrr; did you mean --model.lr?"),
        (["classify", "fit", "--lr=3"], "unknown option --lr; did you mean --model.lr?"),
        (["classify", "fit", "--data.bach_size", "3"], "did you mean --data.batch_size?"),
        (["classify", "fit", "--trainer.max_epoch", "3"], "did you mean --trainer.max_epochs?"),
        (["classify", "fit", "--config", "bad.yaml"], "unknown option model.lrr in bad.yaml; did you mean model.lr?"),
        (
            ["classify", "fit", "--config", "smal.yaml"],
            "there is no configuration file smal.yaml; did you mean small.yaml?",
        ),
        (["classify", "fit", "--data.path", "digits", "--model.lr", "fast"], '"model.lr"'),
        (["classify", "fit", "--data.path", "digits"], "model.backbone is not given"),
        (["classify", "fit", "--data.path", "nowhere"], "nowhere"),
        (["classify", "fit", "--resume", "nowhere"], "there is no run folder nowhere"),
        (["classify", "fit"], "--data.path is required: a folder"),
        (["classify", "fit", "--data", "photos"], "did you mean --data.path photos?"),
        (["clip", "fit", "--data.path", "shapes", "--model", "vit_b"], "did you mean --model.backbone vit_b?"),
        (["classify", "fit", "--trainer", "gpu"], "written --trainer.NAME VALUE"),
        (["classify", "fits"], "unknown subcommand 'fits'; did you mean fit?"),
        (["clasify", "fit"], "unknown task 'clasify'; did you mean classify?"),
        (["classify"], "the subcommand is missing"),
    ],
)
def test_user_errors_are_one_line(args: list[str], message: str, folder: Path, capsys: Any) -> None:
    (folder / "bad.yaml").write_text("model:\n  lrr: 3\n")
    assert cli.run(args) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(err) == 1
    assert message in err[0]
    assert not (folder / "runs").exists()


def test_options_inside_values_are_not_ours_to_check() -> None:
    from visionzoo.cli.options import check_options

    known = ["model", "model.lr", "trainer", "trainer.strategy"]
    check_options(["--trainer.strategy.init_args.x", "1", "--model.lr", "-3"], known)


@pytest.mark.long
def test_one_channel_reads_images_as_grey(folder: Path) -> None:
    options = ["--model.in_chans", "1", "--data.path", "shapes:128", "--run_dir", "grey", "--trainer.max_epochs", "1"]
    assert fit(*options) == 0
    spec = json.loads((folder / "grey" / "config.json").read_text())["preprocess"]
    assert len(spec["mean"]) == len(spec["std"]) == 1
    classifier = vz.ImageClassifier.load(folder / "grey")
    assert len(classifier.predict(np.zeros((20, 30, 3), dtype=np.uint8))[0]) == 5


# ---- the command visionzoo ----------------------------------------------------------------------------------------


def test_main_lists_commands_suggests_and_versions(capsys: Any) -> None:
    assert main([]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["modles"]) == 2
    assert "unknown command 'modles'; did you mean models?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert main(["train", "clasify"]) == 2


def test_help_is_fast_since_it_imports_nothing_heavy() -> None:
    code = "import sys; from visionzoo.cli.main import main; main([]); print({'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "set()"


# ---- real processes ------------------------------------------------------------------------------------------------


def train_process(*args: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), "classify", "fit", "--config", "small.yaml", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
    )


@pytest.mark.slow
def test_ctrl_c_of_a_real_process_and_its_resume_command(folder: Path) -> None:
    process = train_process("--trainer.max_epochs", "500", "--run_dir", "long")
    deadline = time.monotonic() + 200
    while not (folder / "long" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 130, out
    assert "--resume long" in out
    step = torch.load(folder / "long" / "last.ckpt", weights_only=True)["global_step"]
    assert f"saved at step {step}" in out


@pytest.mark.slow
def test_two_processes_train_and_agree_with_one_folder(folder: Path) -> None:
    process = train_process("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.limit_val_batches=1.0")
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0, out
    assert [p.name for p in (folder / "runs").iterdir()] == ["classify-digits-vit_nano_patch4_32"]
    assert "on 359 held-out images" in out
    assert out.count("top-1 accuracy") == 1
