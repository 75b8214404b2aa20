"""Options that change when a run goes on: each is applied, or refused before anything is written."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from visionzoo.cli import train as cli
from visionzoo.tasks.engine.quiet import quiet_lightning

MODEL = {"backbone": "vit_nano_patch4_32", "image_size": 16, "lr": 2e-3, "mixup": 0.2}
DATA = {"path": "digits", "batch_size": 16, "eval_batch_size": 256, "num_workers": 0, "train_limit": 64}
TRAINER = {"max_epochs": 3, "accelerator": "cpu", "limit_val_batches": 1}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump({"model": MODEL, "data": DATA, "trainer": TRAINER}))


def fit(*options: str) -> int:
    return cli.run(["classify", "fit", "--config", "small.yaml", *options])


def resume(*options: str, command: str = "fit") -> int:
    return cli.run(["classify", command, "--resume", "run", *options])


def files() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path("run").rglob("*")) if p.is_file()}


def groups() -> list[dict[str, Any]]:
    return torch.load("run/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run broken off after six of its twelve steps, in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "small.yaml").write_text(yaml.safe_dump({"model": MODEL, "data": DATA, "trainer": TRAINER}))
    options = ["--config", str(folder / "small.yaml"), "--run_dir", str(folder / "run"), "--trainer.max_steps", "6"]
    assert cli.run(["classify", "fit", *options]) == 0
    return folder / "run"


@pytest.fixture
def begun(half: Path, here: None) -> None:
    shutil.copytree(half, "run")


ON = "--trainer.max_steps=-1"


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.image_size", "32"], "model.image_size was 16 and is 32"),
        (["--model.backbone", "swin_nano_patch2_window4_32"], "model.backbone was vit_nano_patch4_32 and is swin_nano"),
        (["--model.finetune", "lora"], "model.finetune was full and is lora"),
        (["--model.layer_decay", "0.5"], "model.layer_decay was 1.0 and is 0.5"),
        (["--seed_everything", "3"], "seed_everything was 0 and is 3"),
        (["--trainer.accumulate_grad_batches", "2"], "trainer.accumulate_grad_batches was 1 and is 2"),
        (["--trainer.limit_train_batches", "2"], "trainer.limit_train_batches was 1.0 and is 2"),
        (["--data.batch_size", "8"], "batch_size was 16 and is 8"),
        (["--data.drop_last", "false"], "drop_last was True and is False"),
        (["--data.train_limit", "80"], "data was "),
        (["--data.seed", "5"], "seed was 0 and is 5"),
        (["--model.lr", "-1"], "lr=-1"),
    ],
)
def test_what_cannot_change_is_refused_and_the_run_stays_as_it_is(
    begun: None, options: list[str], said: str, capsys: Any
) -> None:
    before = files()
    assert resume(ON, *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert files() == before


@pytest.mark.long
def test_optimizer_options_reach_the_optimizer(begun: None, capsys: Any) -> None:
    assert resume(
        ON, "--model.lr", "1e-2", "--model.weight_decay", "0.5", "--model.betas", "[0.8, 0.9]",
        "--model.min_lr", "1e-2", "--model.label_smoothing", "0.1",
    ) == 0  # fmt: skip
    assert "goes on at step 6 of 12, in epoch 2" in capsys.readouterr().out
    plain, decayed = groups()
    assert decayed["weight_decay"] == 0.5
    assert plain["weight_decay"] == 0
    for group in (decayed, plain):
        assert group["lr"] == pytest.approx(1e-2)  # which the schedule keeps, its floor being as high
        assert group["initial_lr"] == 1e-2
        assert tuple(group["betas"]) == (0.8, 0.9)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["model"]["weight_decay"] == 0.5


@pytest.mark.long
def test_resuming_with_the_options_it_had_is_exact(begun: None) -> None:
    assert fit("--run_dir", "whole", "--model.min_lr", "2e-3") == 0  # a flat schedule does not know how long it is
    assert fit("--run_dir", "cut", "--model.min_lr", "2e-3", "--trainer.max_steps", "6") == 0
    assert cli.run(["classify", "fit", "--resume", "cut", ON]) == 0
    a, b = (torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("whole", "cut"))
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    assert a["lr_schedulers"] == b["lr_schedulers"]


@pytest.mark.long
def test_the_seed_and_accumulation_may_change_between_epochs() -> None:
    assert fit("--run_dir", "run", "--trainer.max_epochs", "1") == 0
    assert resume("--trainer.max_epochs", "2", "--seed_everything", "3", "--trainer.accumulate_grad_batches", "2") == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 6


def test_average_weights_can_be_turned_on_but_not_off(begun: None, capsys: Any) -> None:
    assert resume(ON, "--model.ema_decay", "0.9", "--trainer.max_epochs", "2") == 0
    assert resume("--trainer.max_epochs", "3", "--model.ema_decay", "0") == 2
    assert "model.ema_decay was 0.9 and is 0" in capsys.readouterr().err


@pytest.mark.long
def test_the_patience_of_early_stopping_is_that_of_today(capsys: Any) -> None:
    still = ["--model.lr", "1e-12", "--trainer.max_epochs", "9"]
    assert fit("--run_dir", "run", *still, "--early_stopping", "1") == 0
    out = capsys.readouterr().out
    assert "stopped early, after epoch 2 of 9: val/accuracy was not better than" in out
    assert resume("--early_stopping", "4") == 0
    out = capsys.readouterr().out
    assert "stopped early, after epoch 5 of 9" in out
    assert "in the last 4 validations" in out


def test_evaluating_a_resumed_run_says_nothing_of_callbacks(begun: None) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet_lightning()
        assert resume(command="validate") == 0
    assert not [w for w in said if "callbacks" in str(w.message)]


@pytest.mark.parametrize(
    "options",
    [["--model.lr=-1"], ["--data.path=nosuch"], ["--model.warmup_steps=99"], ["--model.nosuch=1"]],
)
def test_a_refused_command_leaves_no_folder(options: list[str]) -> None:
    assert fit(*options) == 2
    assert not Path("runs").exists()
    assert fit("--run_dir", "a/b", *options) == 2
    assert not Path("a").exists()


@pytest.mark.long
def test_what_is_applied_in_the_middle_of_an_epoch_is_said(begun: None, capsys: Any) -> None:
    options = ["--data.magnitude", "3", "--trainer.precision", "bf16-mixed", "--data.eval_batch_size", "128"]
    assert resume(ON, *options) == 0
    out = capsys.readouterr().out.splitlines()
    said = "from here on: data.magnitude was 7.0 and is 3.0; trainer.precision was 32-true and is bf16-mixed"
    assert said in out


@pytest.mark.long
def test_what_has_not_changed_is_not_said(begun: None, capsys: Any) -> None:
    assert resume(ON) == 0
    assert "from here on" not in capsys.readouterr().out


@pytest.mark.parametrize(("ends_at", "lacks"), [("data:", "no data"), ("model:", "no model and no data")])
def test_a_configuration_that_was_cut_short_is_named(
    begun: None, ends_at: str, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path("run/config.yaml")
    config.write_text(config.read_text().partition(f"\n{ends_at}")[0])
    before = files()
    assert resume(ON) == 2
    assert f"{config} is not whole: it has {lacks}; put back" in capsys.readouterr().err
    assert files() == before


def test_what_a_run_has_of_its_own_is_not_taken_from_elsewhere(begun: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = files()
    assert resume(ON, "--run_dir", "other") == 2
    assert "--resume run goes on in that folder; leave --run_dir other out" in capsys.readouterr().err
    assert files() == before
    assert resume(ON, "--run_dir", "run", "--config", "small.yaml") == 0
    assert "small.yaml is not read: the run has its own run/config.yaml" in capsys.readouterr().out


def test_an_evaluation_leaves_the_results_of_the_run_as_they_are(
    begun: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are those of what was exported; last.ckpt may be worse."""
    before = files()
    assert resume(command="validate") == 0
    assert files() == before
    said = "by run/last.ckpt, where training stands; --model.weights run asks what it exported"
    assert said in capsys.readouterr().out
    assert Path("runs/classify-digits-vit_nano_patch4_32-validate/results.json").is_file()


def test_a_folder_with_files_of_a_person_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    text = f"# by hand\n{Path('small.yaml').read_text()}"
    Path("mine/config.yaml").write_text(text)
    assert cli.run(["classify", "fit", "--config", "mine/config.yaml", "--run_dir", "mine"]) == 2
    assert "mine holds a config.yaml that no run has written; give another --run_dir" in capsys.readouterr().err
    assert Path("mine/config.yaml").read_text() == text
    Path("mine/config.yaml").write_text(f"{cli.RUNS_AGAIN} train.py ...\n{Path('small.yaml').read_text()}")
    assert cli.run(["classify", "fit", "--resume", "mine"]) == 0  # of a run that was killed before it wrote more
