"""Pages of help: a map of jobs, and pages that fit a screen, with the rest a word further."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from visionzoo.cli.commands import COMMANDS
from visionzoo.cli.jobs import JOBS
from visionzoo.cli.main import command_parser, main
from visionzoo.cli.tasks import SUBCOMMANDS, TASKS, split_arguments

EXAMPLES = [example for lines in JOBS.values() for example, _ in lines]
#: Lines and columns of a screen.
LINES, COLUMNS = 45, 110


def help_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as done:
        main(args)
    assert not done.value.code
    return capsys.readouterr().out


def test_the_map_names_every_command_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert {command_of(example) for example in EXAMPLES} == {"train", *COMMANDS}
    assert len(page.splitlines()) <= LINES
    assert max(map(len, page.splitlines())) <= COLUMNS


def command_of(example: str) -> str:
    """The command, of one word or two, that an example begins with."""
    program, first, *rest = shlex.split(example)
    assert program == "visionzoo"
    both = " ".join([first, *rest[:1]])
    return both if both in COMMANDS else first


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_map_is_understood(example: str) -> None:
    name, words = command_of(example), shlex.split(example)
    rest = words[1 + len(name.split()) :]
    if name == "train":
        split_arguments(rest, words[0])
    else:
        command_parser(only=name).parse_args([name, *rest])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_fits_a_screen(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page, everything = help_of(capsys, *name.split(), "--help"), help_of(capsys, *name.split(), "--help-all")
    assert len(page.splitlines()) <= LINES
    assert "--import MODULE" in everything
    assert "--import" not in page
    assert f"visionzoo {name} --help-all lists" in page


@pytest.mark.parametrize("task", TASKS)
def test_the_options_of_a_task_fit_a_screen(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = help_of(capsys, "train", task, "fit", "--help")
    assert len(page.splitlines()) <= LINES
    assert max(map(len, page.splitlines())) <= COLUMNS
    for option in ("--data.path", "--model.lr", "--trainer.max_epochs", "--resume DIR"):
        assert option in page
    assert f"{task} fit --help-all lists all" in page


def test_what_is_said_of_other_subcommands_and_of_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model.lr" not in help_of(capsys, "train", "classify", "validate", "--help")
    assert "--trainer.sync_batchnorm" in help_of(capsys, "train", "classify", "fit", "--help-all")
    assert set(SUBCOMMANDS) == {"fit", "validate", "test", "predict"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [("visionzoo pre", "predict"), ("visionzoo predict --to", "--top"), ("visionzoo export x --to py", None)],
)
def test_a_shell_is_told_the_rest_of_a_word(line: str, expected: str | None, tmp_path: Path) -> None:
    """As argcomplete's shell code asks."""
    answers = tmp_path / "answers"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    environment = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answers)}
    subprocess.run([sys.executable, "-m", "visionzoo"], env=environment, check=True, timeout=60)
    assert [word.strip() for word in answers.read_text().split("\n") if word] == (
        [] if expected is None else [expected]
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out + "\ncomplete -p visionzoo"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "_python_argcomplete" in done.stdout


@pytest.mark.parametrize(
    ("task", "option", "choices"),
    [("classify", "finetune", "full, head, lora"), ("ssl", "method", "simclr, moco, dino")],
)
def test_a_word_that_is_none_of_some_is_told_which_there_are(
    task: str, option: str, choices: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", task, "fit", "--data.path", "digits", f"--model.{option}", "xyz"]) == 2
    assert capsys.readouterr().err == f"error: --model.{option} xyz is unknown; use {choices}\n"
