"""``--import MODULE``, which every command takes, and the modules that the run at hand was made with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionzoo.cli.suggest import UsageError
from visionzoo.plugins import classes_in, import_typed, load_installed, require, require_classes

IMPORT_HELP = (
    "a module, or a .py file, with backbones, tasks or losses of your own; may be given several times. Runs remember it"
)
#: Parts of a configuration whose strings are names and paths, and import nothing.
PLAIN = ("model", "data", "import")


def take_option(args: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The arguments without every ``--name VALUE`` and ``--name=VALUE``, and those values.

    Raises:
        UsageError: where the value is missing.
    """
    rest: list[str] = []
    values, i = [], 0
    while i < len(args) and args[i] != "--":
        if args[i] == f"--{name}":
            if i + 1 == len(args):
                raise UsageError(f"--{name} needs a value")
            i += 1
            values.append(args[i])
        elif args[i].startswith(f"--{name}="):
            values.append(args[i].partition("=")[2])
        else:
            rest.append(args[i])
        i += 1
    return [*rest, *args[i:]], values


def take_imports(args: Sequence[str]) -> list[str]:
    """Import what ``--import`` names, then what installed packages announce. Returns the other arguments.

    Raises:
        ValueError: for a module that cannot be imported.
    """
    rest, names = take_option(args, "import")
    for name in names:
        import_typed(name)
    load_installed()
    return rest


def require_for_training(args: Sequence[str]) -> None:
    """Import what the runs and configurations of a training command were made with, as far as they may ask for it.

    Raises:
        ValueError: saying which ``--import`` to add.
    """
    _, resumed = take_option(args, "resume")
    _, configs = take_option(args, "config")
    for file in map(Path, configs):  # the user's own word
        if b"import" in _bytes(file):
            require(_names(options_in(file)), file)
    for file in (Path(run) / "config.yaml" for run in resumed):  # a folder may come from a stranger
        options = options_in(file)
        require(_names(options), file)
        if found := next(_elsewhere(options, file), None):
            raise ValueError(f"{file} takes options from another file, {found!r}, which no run writes; use --config")
        require_classes(classes_in({k: v for k, v in options.items() if k not in PLAIN}), file)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def options_in(file: Path) -> dict[Any, Any]:
    """What a configuration holds; nothing where it is no valid one, which is said when it is parsed."""
    import yaml

    try:
        found: Any = yaml.safe_load(_bytes(file))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _names(options: dict[Any, Any]) -> list[str]:
    names = options.get("import")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _elsewhere(options: dict[Any, Any], file: Path) -> Iterator[str]:
    """Files that a parser would read in the place of options."""
    for name, value in options.items():
        if name in ("trainer", *PLAIN) and isinstance(value, str):
            yield value
        elif name not in PLAIN:
            yield from (text for text in _strings(value) if os.path.isfile(text) or os.path.isfile(file.parent / text))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(one)
    elif isinstance(value, str):
        yield value
