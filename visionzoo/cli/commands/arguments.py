"""How the small commands spell their options. An option that several have is defined here, once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from visionzoo.cli.imports import IMPORT_HELP
from visionzoo.cli.suggest import UsageError, spelled
from visionzoo.terminal import say

CLIP = (
    "run folder of a CLIP, folder with weights of open_clip or transformers, hf-hub:org/name, or a name with --weights"
)
BACKBONE = "run folder, or the name of a backbone (`visionzoo models`)"


class CommandParser(argparse.ArgumentParser):
    """A parser that takes ``-`` and ``_`` alike, options anywhere, and answers a mistake in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.rare: list[argparse.Action] = []  #: what only --help-all lists
        self.add_rare("--import", action="append", metavar="MODULE", help=IMPORT_HELP)  # main has taken it
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help=argparse.SUPPRESS)
        self._inside = False

    def add_rare(self, *names: str, **options: Any) -> argparse.Action:
        """``add_argument`` for what few people need: :meth:`format_help` leaves it out."""
        action = self.add_argument(*names, **options)
        self.rare.append(action)
        return action

    def format_help(self, *, everything: bool = False) -> str:
        """The page of ``--help``, which fits a screen; or that of ``--help-all``."""
        if everything:
            return super().format_help()
        shown = [(action, action.help) for action in self.rare]
        for action in self.rare:
            action.help = argparse.SUPPRESS
        usage, self.usage = self.usage, None  # argparse keeps one of all options while it takes them anywhere
        try:
            page = super().format_help()
        finally:
            self.usage = usage
            for action, text in shown:
                action.help = text
        more = "option" if len(shown) == 1 else "options"
        return f"{page}\n{self.prog} --help-all lists {len(shown)} {more} more.\n"

    def error(self, message: str) -> NoReturn:
        """Raise UsageError in place of a page of usage and an exit."""
        raise UsageError(f"{message.removeprefix('argument ')} ({self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with options anywhere and ``-`` for ``_``."""
        given: Sequence[str] = sys.argv[1:] if args is None else args
        if self._inside or self._subparsers is not None:
            return super().parse_known_args(given, namespace)
        options = [option for action in self._actions for option in action.option_strings]
        # intermixed: `predict RUN --top 2 IMAGE` would lose its image, since RUN alone is enough for the positionals
        self._inside = True
        try:
            return self.parse_known_intermixed_args(spelled(given, options), namespace)
        finally:
            self._inside = False


#: What builds a parser for a command.
Subparsers: TypeAlias = "argparse._SubParsersAction[CommandParser]"


class _HelpAll(argparse.Action):
    """``--help-all``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, CommandParser)
        say(parser.format_help(everything=True).rstrip("\n"))
        parser.exit()


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number, at least ``least``."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
        return value

    return number


def add_model(parser: argparse.ArgumentParser, what: str = BACKBONE, *, required: bool = True) -> None:
    """``--model``."""
    parser.add_argument("--model", required=required, metavar="MODEL", help=what)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """``--weights``, for a model that is given by its name."""
    parser.add_argument(
        "--weights", metavar="W",
        help="for a name: file, folder, hf-hub:org/name, timm:tag or random",
    )  # fmt: skip


def add_image_size(parser: argparse.ArgumentParser) -> None:
    """``--image-size``, one number of pixels."""
    parser.add_argument("--image-size", type=whole(1), metavar="PIXELS", help="for a name (default: its own)")


def add_out(parser: argparse.ArgumentParser, what: str, default: str | None = None, *, required: bool = False) -> None:
    """``--out``, the file that is written."""
    shown = f"{what} (default: {default})" if default else what
    parser.add_argument("--out", default=default, required=required, metavar="FILE", help=shown)


def add_labels(parser: argparse.ArgumentParser, what: str) -> None:
    """``--labels A,B,...``, or a file."""
    parser.add_argument("--labels", metavar="A,B,...", help=what)


def add_top(parser: argparse.ArgumentParser, what: str, default: int) -> None:
    """``--top K``, at least 1."""
    parser.add_argument("--top", type=whole(1), default=default, metavar="K", help=f"{what} (default: {default})")


def add_promises(parser: argparse.ArgumentParser) -> None:
    """``--sets P`` and ``--unknown-rate R``, of a calibrated classifier."""
    parser.add_argument(
        "--sets", type=float, metavar="P",
        help="in place of --top as many labels as hold the right one for this share of images, such as 0.9 "
        "(of a calibrated model)",
    )  # fmt: skip
    parser.add_argument(
        "--unknown-rate", type=float, metavar="R",
        help="call unknown what the model is least sure of, at most this share of known images, such as 0.05 "
        "(of a calibrated model)",
    )  # fmt: skip


def add_json(parser: Any) -> None:
    """``--json [FILE]``; ``-`` stands for the terminal."""
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON; without FILE to the terminal")


def add_csv(parser: Any) -> None:
    """``--csv [FILE]``; ``-`` stands for the terminal."""
    parser.add_argument("--csv", nargs="?", const="-", metavar="FILE", help="write CSV, one row for each image")


def add_batch_size(parser: CommandParser, default: int) -> None:
    """``--batch-size``, at least 1."""
    parser.add_rare(
        "--batch-size", type=whole(1), default=default, metavar="N", help=f"images at a time (default: {default})"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``; None takes a GPU where there is one."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


def the_model(positional: str | None, option: str | None) -> str:
    """What a command works on: its first argument, or ``--model``.

    Raises:
        UsageError: if both say it, or neither does.
    """
    if (positional is None) == (option is None):
        problem = "is given twice: first, and by --model" if option else "is missing: give it first, or by --model"
        raise UsageError(f"the model {problem}")
    return positional or option or ""
