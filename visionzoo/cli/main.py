"""The command ``visionzoo``. Nothing heavy is imported before it is known what to run."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence

import visionzoo
from visionzoo.cli.commands import COMMANDS
from visionzoo.cli.commands.arguments import CommandParser
from visionzoo.cli.imports import require_for_training, take_imports, take_option
from visionzoo.cli.jobs import job_map
from visionzoo.cli.processes import StopSignal, die_with_launcher, scheduler_signals
from visionzoo.cli.suggest import UsageError, suggestion
from visionzoo.cli.tasks import help_page, split_arguments
from visionzoo.signals import TRY_AGAIN
from visionzoo.terminal import say, visible

# OpenMP's threads spin while they wait for each other. Where something else wants the cores too, a small model then
# trains ten times slower or worse (measured: 8 to 70 images/s against 330 to 430, two threads on two busy cores).
# torch reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _plain_warnings() -> None:
    """A warning is a line for the person at the terminal, not a place in our source."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {visible(message)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``visionzoo COMMAND ...``. Exit code: 0 well, 1 failed, 2 the user's error, 130 Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for the rest of a word
        import argcomplete

        argcomplete.autocomplete(command_parser(only=None))
    if args and args[0] == "train":
        return _as_a_command(lambda: _train(args[1:], program="visionzoo train"))
    return _as_a_command(lambda: _command(args))


def train(argv: Sequence[str] | None = None) -> int:
    """``python train.py ...``, the same as ``visionzoo train ...``."""
    args = list(sys.argv[1:] if argv is None else argv)
    return _as_a_command(lambda: _train(args, program="python train.py"))


def _as_a_command(run: Callable[[], int]) -> int:
    """``run()``, with what the terminal and the next program in a pipe do to it."""
    _plain_warnings()
    try:
        code = run()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stopped:  # its words say what is kept, where something is
        say(f"\n{stopped}" if stopped.args else "\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `visionzoo models | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it at exit is quiet as well
        return 0


def _train(args: list[str], program: str) -> int:
    try:
        args = take_imports(args)
        if (page := help_page(args, program)) is not None:
            say(page)
            return 0
        require_for_training(args)
        split_arguments(args, program)  # a mistake in the first words is said at once
    except ValueError as error:
        if os.environ.get("VISIONZOO_TRACEBACK"):
            raise
        say(f"error: {error}", file=sys.stderr)
        return 2
    die_with_launcher()
    try:
        with scheduler_signals():
            from visionzoo.cli.train import run  # takes seconds

            return run(args, program)
    except StopSignal as stopped:
        say(f"stopped by {stopped} before the run began", file=sys.stderr)
        return TRY_AGAIN


def _command(given: list[str]) -> int:
    known = ["train", *COMMANDS]
    try:
        args, _ = take_option(given, "import")
        args = _joined(args)
        name = next((a for a in args if not a.startswith("-")), None)
        if name is not None and name not in known:
            hint = suggestion(name, known, otherwise=f"the commands are {', '.join(known)}")
            raise UsageError(f"unknown command {name!r}; {hint}")
        if name is not None:
            take_imports(given)
        if name is None and set(args) <= {"-h", "--help", "--help-all"}:
            say(job_map())
            return 0
        parsed = command_parser(only=name).parse_args(args)
        return importlib.import_module(COMMANDS[parsed.command]).run(parsed)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        if os.environ.get("VISIONZOO_TRACEBACK"):
            raise
        say(f"error: {_in_words(error)}", file=sys.stderr)
        return 2


def _in_words(error: Exception) -> str:
    """An error of the system without its number, with the file where it is known."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename is not None else "")
    hint = "; free some space, and start the same command again" if error.errno == errno.ENOSPC else ""
    return what + hint


def _joined(args: list[str]) -> list[str]:
    """A command of two words as one."""
    at = next((i for i, a in enumerate(args) if not a.startswith("-")), len(args))
    both = " ".join(args[at : at + 2])
    return [*args[:at], both, *args[at + 2 :]] if both in COMMANDS else args


def command_parser(only: str | None) -> argparse.ArgumentParser:
    """The parser with the options of one command, or with the names of all."""
    parser = CommandParser(prog="visionzoo", description="Vision Transformers: train, look, use.")
    parser.add_argument("--version", action="version", version=f"visionzoo {visionzoo.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    if only is None:
        subparsers.add_parser("train", help="train and evaluate; the same as python train.py")
    for name, module in COMMANDS.items():
        if only in (None, name):
            importlib.import_module(module).add_parser(subparsers)
    return parser
