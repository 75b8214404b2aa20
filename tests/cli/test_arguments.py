"""One spelling of an option in every command, and one way to say that another was meant."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from visionzoo.cli.commands import COMMANDS
from visionzoo.cli.commands.arguments import CommandParser
from visionzoo.cli.main import main
from visionzoo.cli.suggest import UsageError, spelled
from visionzoo.cli.tasks import TASKS, split_arguments


def _leaves(parser: argparse.ArgumentParser, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield name, parser
    for action in nested:
        for word, child in action.choices.items():
            yield from _leaves(child, (*name, word))


def _commands() -> dict[tuple[str, ...], argparse.ArgumentParser]:
    parser = CommandParser(prog="visionzoo")
    subparsers = parser.add_subparsers(dest="command")
    for module in COMMANDS.values():
        importlib.import_module(module).add_parser(subparsers)
    return dict(_leaves(parser))


LEAVES = _commands()
EACH = pytest.mark.parametrize("command", LEAVES, ids=" ".join)
#: An option that several commands have, however they may differ in what it stands for there.
SHARED = ("--model", "--weights", "--out", "--top", "--json", "--csv", "--device", "--image-size", "--batch-size")
#: Other words for the same, which no command has.
OTHER_WORDS = ("--top-k", "--topk", "--output", "--backbone", "--checkpoint", "--run", "--gpu", "--size", "--as-json")


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}


def test_an_option_of_several_commands_is_the_same_in_each() -> None:
    forms: dict[str, set[tuple[Any, ...]]] = {}
    for parser in LEAVES.values():
        for option, action in _options(parser).items():
            if option in SHARED:
                metavar = None if option == "--out" else action.metavar  # a file, or the folder of a run
                forms.setdefault(option, set()).add((action.dest, action.nargs, action.const, metavar))
    assert set(forms) == set(SHARED)
    assert {option: found for option, found in forms.items() if len(found) > 1} == {}


@EACH
def test_no_command_has_another_word_for_it(command: tuple[str, ...]) -> None:
    own = {("fit",): {"--backbone"}}.get(command, set())  # of which it makes a model
    assert set(OTHER_WORDS) & set(_options(LEAVES[command])) == own
    works_on_a_model = command not in (
        ("models",),
        ("data", "check"),
        ("cache",),
        ("env",),
        ("fit",),
        ("demo",),
        ("bench compare",),
        ("push",),  # a run first, and then a name
        ("completion",),
        ("soup",),  # of several
    )
    assert ("--model" in _options(LEAVES[command])) == works_on_a_model


@EACH
def test_dashes_and_underscores_are_the_same(command: tuple[str, ...]) -> None:
    options = _options(LEAVES[command])
    for option in options:
        if option.startswith("--"):
            swapped = "--" + option[2:].translate(str.maketrans("-_", "_-"))
            assert spelled([swapped, "x", f"{swapped}=a-b_c"], options) == [option, "x", f"{option}=a-b_c"]


@EACH
def test_a_wrong_option_is_one_line_that_names_the_right_one(command: tuple[str, ...], capsys: Any) -> None:
    for option in _options(LEAVES[command]):
        if len(option) < 6:
            continue
        slip = option[:3] + option[4:]
        assert main([*command, slip, "x"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == f"error: unknown option {slip}; did you mean {option}?\n"


def test_what_follows_two_dashes_is_no_option() -> None:
    assert spelled(["--top_k", "3", "--", "--a_b"], ["--top-k"]) == ["--top-k", "3", "--", "--a_b"]
    with pytest.raises(UsageError, match=r"unknown option --zzzz; --help lists the options"):
        spelled(["--zzzz"], ["--top-k"])


@pytest.mark.parametrize("task", TASKS)
def test_training_takes_dashes_too(task: str) -> None:
    given = [task, "fit", "--run-dir", "my-run", "--model.weight-decay=a-b", "-3", "--trainer.max_epochs", "2"]
    expected = ["--run_dir", "my-run", "--model.weight_decay=a-b", "-3", "--trainer.max_epochs", "2"]
    assert split_arguments(given, "python train.py") == (task, "fit", expected)
