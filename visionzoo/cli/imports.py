"""``--import MODULE``, which every command takes, and the modules that the run at hand was made with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionzoo.cli.suggest import UsageError
from visionzoo.plugins import import_typed, load_installed, require

IMPORT_HELP = (
    "a module, or a .py file, with backbones, tasks or losses of your own; may be given several times. Runs remember it"
)


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
    for file in [*(Path(run) / "config.yaml" for run in resumed), *map(Path, configs)]:
        if names := _names(file):
            require(names, file)


def _names(file: Path) -> list[str]:
    """What a configuration names; nothing where it is no valid one, which is said when it is parsed."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    if "import" not in text:
        return []
    import yaml

    try:
        found: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    names = found.get("import") if isinstance(found, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
