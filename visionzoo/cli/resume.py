"""``--resume DIR``: the configuration, the folder and the last checkpoint of a run that goes on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from visionzoo.cli.imports import options_in, take_option
from visionzoo.cli.suggest import UsageError
from visionzoo.runs import RunFolder
from visionzoo.tasks.engine.checkpoint import peek
from visionzoo.terminal import say, shell_quoted


def resume_arguments(args: Sequence[str], subcommand: str = "fit") -> list[str]:
    """Turn ``--resume DIR`` into that run's configuration, folder and last checkpoint; other options stay and win.

    What is only evaluated goes into a folder of its own: the run's results are those of what it exported.

    Raises:
        FileNotFoundError, ValueError: when the folder is not a run that can go on, or another one is named beside it.
    """
    rest, folders = take_option(args, "resume")
    if not folders:
        return list(args)
    rest, configs = take_option(rest, "config")
    rest, others = take_option(rest, "run_dir")
    folder = folders[-1]
    run = RunFolder.open(folder)
    if others and subcommand == "fit" and Path(others[-1]).resolve() != run.path.resolve():
        raise UsageError(f"--resume {folder} goes on in that folder; leave --run_dir {others[-1]} out")
    if configs and Path(configs[-1]).resolve() != run.config_yaml.resolve():
        say(f"{configs[-1]} is not read: the run has its own {run.config_yaml}, and options beside --resume change it")
    checkpoint = next((file for file in (run.last, run.best) if file.is_file()), None)
    missing = run.config_yaml if not run.config_yaml.is_file() else run.last
    if not run.config_yaml.is_file() or (checkpoint is None and run.model.is_file()):
        raise FileNotFoundError(
            f"{folder} cannot be resumed: it has no {missing.name}; start it again in another folder"
        )
    kept = options_in(run.config_yaml)
    if kept and (
        lacks := [f"no {part}" for part in ("trainer", "model", "data") if not isinstance(kept.get(part), dict)]
    ):
        raise ValueError(
            f"{run.config_yaml} is not whole: it has {' and '.join(lacks)}; put back what the run wrote, "
            "or start it again in another folder"
        )
    where = [f"--run_dir={run.path}"] if subcommand == "fit" else [f"--run_dir={other}" for other in others]
    again = [f"--config={run.config_yaml}", *rest, *where]
    if checkpoint is None:
        say(f"{folder} was stopped before its first save; it starts again", flush=True)
        return again
    try:
        peek(checkpoint)
    except ValueError as error:
        other = f"; move it away to go on from {run.best.name}" if run.best.is_file() and checkpoint == run.last else ""
        raise ValueError(f"{error}{other}") from error
    if subcommand != "fit":
        say(f"by {checkpoint}, where training stands; --model.weights {shell_quoted(folder)} asks what it exported")
    elif checkpoint == run.best:
        warnings.warn(f"{folder} has no {run.last.name}; going on from {run.best.name}", stacklevel=2)
    return [*again, f"--ckpt_path={checkpoint}"]
