"""Wrong options, said in one line: which one, and which right one is nearest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pytorch_lightning.cli import LightningArgumentParser

from visionzoo.cli.suggest import UsageError
from visionzoo.files import similar_names
from visionzoo.text import decode_text

#: Loggers of Lightning that a class name is enough for, and the package that each needs.
LOGGERS = {
    "CSVLogger": None,
    "TensorBoardLogger": None,
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet-ml",
    "NeptuneLogger": "neptune",
}


#: What the parser says of a word that is none of some.
_CHOICES = re.compile(r'Parser key "([\w.]+)":.*?typing\.Literal\[([^\]]*)\].*(?:Got|Given) value: (\S+)$')


def logger_help() -> str:
    """How a logger is named on the command line."""
    names = ", ".join(name + (f" (pip install {needs})" if needs else "") for name, needs in LOGGERS.items())
    return (
        "write a class and its options, such as --trainer.logger CSVLogger --trainer.logger.save_dir logs; "
        f"classes are {names}. It comes beside metrics.csv; --trainer.logger false turns everything off"
    )


def check_loggers(given: Any) -> None:
    """Refuse a logger whose package is not installed.

    Args:
        given: the option as it was parsed.

    Raises:
        UsageError: naming the package.
    """
    for logger in given if isinstance(given, list) else [given]:
        name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        needs = LOGGERS.get(name)
        if needs and find_spec(needs.replace("-", "_")) is None:
            raise UsageError(f"--trainer.logger {name} needs another package: pip install {needs}")


def in_plain_words(message: str) -> str:
    """A message of the parser, as a person can use it."""
    if '"trainer.logger"' in message:
        given = re.search(r"Expected a dot import path string: (\S+)", message)
        what = f"--trainer.logger: there is no logger {given[1]}; " if given else "--trainer.logger does not fit; "
        return what + logger_help()
    if "data.path" in message and "required" in message:
        return "--data.path is required: a folder of images, a file that lists them, or a built-in set (digits, shapes)"
    if found := _CHOICES.search(message):
        key, choices, value = found.groups()
        return f"--{key} {value} is unknown; use {choices.replace(chr(39), '')}"
    return message


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are exceptions with one line, instead of a page of usage and an exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError in place of a page of usage and an exit."""
        raise UsageError(in_plain_words(" ".join(message.split()))) from ex


def check_options(args: Sequence[str], known: Iterable[str]) -> None:
    """Check option names on the command line and in the configuration files that it names.

    Args:
        args: what follows the task and the subcommand.
        known: dotted names such as ``model.lr``, groups included.

    Raises:
        UsageError: for the first name that is not known.
        FileNotFoundError: for a configuration file that is not there.
    """
    # X.help prints the options of a class for X; it makes no group of X
    names = {name for name in known if not name.endswith(".help")}
    for option, value in _options(args):
        if option in ("config", "c") and value is not None:
            _check_config(value, names)
        else:
            _check_name(option, names, f"--{option}")
            _check_group(option, value, names)


def _options(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(name, value) of each option; the value is None where none follows."""
    for i, arg in enumerate(args):
        if not arg.startswith("-") or _is_number(arg):
            continue
        name, equals, value = arg.lstrip("-").partition("=")
        following = args[i + 1] if i + 1 < len(args) else None
        yield name.removesuffix("+"), value if equals else following


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_config(file: str, names: set[str]) -> None:
    path = Path(file)
    if not path.is_file():
        near = similar_names(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise FileNotFoundError(f"there is no configuration file {file}{hint}")
    try:
        text, encoding = decode_text(path.read_bytes(), file)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError also for a date such as 2024-99-99
        raise UsageError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UsageError(f"{file} is nested too deeply to be read") from error
    if not encoding.startswith("utf-8"):  # jsonargparse reads it again, and knows only this one
        raise UsageError(f"{file} is {encoding.upper()}; save it as UTF-8")
    if values is None:
        return
    if not isinstance(values, dict):
        raise UsageError(f"{file} must hold options such as 'model:' and 'data:', not a {type(values).__name__}")
    for key in _flat(values, names):
        _check_name(key, names, f"{key} in {file}")


def _flat(values: dict[str, Any], names: set[str], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a nested mapping, down to options; what is inside an option's value is not looked into."""
    groups = _groups(names)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name in groups:
            yield from _flat(value, names, f"{name}.")
        else:
            yield name


def _groups(names: set[str]) -> set[str]:
    """Names that only gather others: ``model`` of ``model.lr``."""
    return {name.rsplit(".", i)[0] for name in names for i in range(1, name.count(".") + 1)}


def _check_name(name: str, names: set[str], shown: str) -> None:
    groups = _groups(names)
    # --trainer.logger.init_args.x reaches into the value of an option, which is not ours to check
    prefixes = {name.rsplit(".", i)[0] for i in range(name.count(".") + 1)}
    if name in groups or prefixes & (names - groups):
        return
    dashed = "--" if shown.startswith("--") else ""
    raise UsageError(f"unknown option {shown}; {_hint(name, names - groups, dashed)}")


#: What is meant by a value for a whole group.
_MEANT = {"data": "data.path", "model": "model.backbone"}


def _check_group(name: str, value: str | None, names: set[str]) -> None:
    """A group takes a file of options, or a mapping; a plain value was meant for one of its options."""
    if name not in _groups(names) or value is None or value.startswith(("-", "{")) or Path(value).is_file():
        return
    meant = _MEANT.get(name)
    hint = f"did you mean --{meant} {value}?" if meant in names else f"its options are written --{name}.NAME VALUE"
    raise UsageError(f"--{name} {value}: this is a group of options; {hint}")


def _hint(name: str, names: set[str], dashed: str) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not near:  # the right word in the wrong group, such as --lr or --data.lr
        word = name.rsplit(".", 1)[-1]
        words = {n.rsplit(".", 1)[-1]: n for n in sorted(names, reverse=True)}
        near = [words[w] for w in difflib.get_close_matches(word, words, n=1, cutoff=0.6)]
    return f"did you mean {dashed}{near[0]}?" if near else "--help lists the options"
