"""The tasks of ``train.py``, its first pages of help, and what its first two words choose. Imports nothing heavy."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from visionzoo.cli.suggest import UsageError, suggestion

if TYPE_CHECKING:
    from visionzoo.data.module import VisionData
    from visionzoo.tasks.base import VisionTask

#: What can be asked of a task, with what each does.
SUBCOMMANDS: dict[str, str] = {
    "fit": "train, and evaluate what was exported",
    "validate": "score a run on held-out images",
    "test": "score a run on the test images",
    "predict": "write a run's answers to a table",
}


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A task of the command line. Classes are named, not imported, so that choosing one task loads no other."""

    summary: str  #: one line of help
    task: str | type[VisionTask]  #: ``module:class``, or the class
    data: str | type[VisionData]  #: the same
    #: attributes of the data -> options of the task, with a function on the way or None
    links: tuple[tuple[str, str, Callable[[Any], Any] | None], ...] = field(default=())

    def load(self) -> tuple[type[VisionTask], type[VisionData]]:
        """The classes of the task and of its data."""
        return _import(self.task), _import(self.data)


TASKS: dict[str, TaskEntry] = {
    "classify": TaskEntry(
        summary="fine-tune or train a classifier",
        task="visionzoo.tasks.classify:ClassifyTask",
        data="visionzoo.data.classify:ClassifyData",
        links=(
            ("num_classes", "num_classes", None),
            ("classes", "classes", list),
            ("multi_label", "multi_label", None),
            ("class_counts", "class_counts", lambda counts: [int(c) for c in counts]),
        ),
    ),
    "clip": TaskEntry(
        summary="match images with text",
        task="visionzoo.tasks.clip:ClipTask",
        data="visionzoo.data.clip:ClipData",
        links=(
            ("zero_shot_classes", "zero_shot_classes", list),
            ("templates", "zero_shot_templates", list),
            ("fixed_images", "fixed_images", None),
        ),
    ),
    "segment": TaskEntry(
        summary="segment what a prompt points at",
        task="visionzoo.tasks.segment:SegmentTask",
        data="visionzoo.data.segment:SegmentData",
        links=(("fixed_images", "fixed_images", None),),
    ),
    "mae": TaskEntry(
        summary="pretrain on images without labels",
        task="visionzoo.tasks.mae:MaeTask",
        data="visionzoo.data.mae:MaeData",
    ),
    "ssl": TaskEntry(
        summary="pretrain on several views of images without labels",
        task="visionzoo.tasks.ssl:SslTask",
        data="visionzoo.data.ssl:SslData",
    ),
}


def register_task(name: str, entry: TaskEntry) -> None:
    """Add a task to ``train.py``. What it must have is checked before training (``visionzoo.tasks.contract``).

    Raises:
        ValueError: if the name is taken, or is none that can be typed and stand in a file name.
    """
    if name in TASKS:
        raise ValueError(f"the task {name!r} is registered already; choose another name")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"the task {name!r} needs a name of small letters, digits and _")
    TASKS[name] = entry


def _import(name: Any) -> Any:
    if not isinstance(name, str):
        return name
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def help_page(argv: Sequence[str], program: str) -> str | None:
    """The page of help that ``argv`` asks for; None where it asks for none, or for a subcommand's list of options."""
    if not argv or argv[0] in ("-h", "--help"):
        return _usage(program)
    asks = len(argv) == 1 or argv[1] in ("-h", "--help")
    return _task_usage(argv[0], program) if argv[0] in TASKS and asks else None


def _usage(program: str) -> str:
    return "\n".join(
        [
            f"usage: {program} {{{','.join(TASKS)}}} {{{','.join(SUBCOMMANDS)}}} [--config FILE] [--model.X v] ...",
            "",
            *(f"  {name:<13}{entry.summary}" for name, entry in TASKS.items()),
            "",
            *_COMMON,
            "",
            f"{program} classify --help says what can be asked of a task; "
            f"{program} classify fit --help lists the usual options.",
        ]
    )


def _task_usage(name: str, program: str) -> str:
    return "\n".join(
        [
            f"usage: {program} {name} {{{','.join(SUBCOMMANDS)}}} [--config FILE] [--model.X v] [--data.X v] ...",
            "",
            f"{name}: {TASKS[name].summary}",
            "",
            *(f"  {subcommand:<13}{what}" for subcommand, what in SUBCOMMANDS.items()),
            "",
            *_COMMON,
            "",
            f"{program} {name} fit --help lists the usual options.",
        ]
    )


_COMMON = (
    "  --data.path PATH      what to read: a folder, a table, or a built-in set (digits, shapes)",
    "  --model.backbone B    a name from `visionzoo models`",
    "  --config FILE         options from a YAML file; later options win",
    "  --run_dir DIR         where results go (default: runs/<task>-<data>-<backbone>)",
    "  --resume DIR          go on with the run in DIR",
    "  --import MODULE       a module or .py file with backbones, tasks or losses of your own",
)


def split_arguments(argv: Sequence[str], program: str) -> tuple[str, str, Sequence[str]]:
    """Task, subcommand, and what follows them, with ``_`` for every ``-`` in the names of options.

    Raises:
        UsageError: for a task or subcommand that is missing or unknown.
    """
    for position, (what, known) in enumerate((("task", tuple(TASKS)), ("subcommand", tuple(SUBCOMMANDS)))):
        given = argv[position] if position < len(argv) else None
        if given not in known:
            problem = f"unknown {what} {given!r}" if given else f"the {what} is missing"
            hint = suggestion(given or "", known, otherwise=f"give one of {', '.join(known)}")
            raise UsageError(f"{problem}; {hint} ({program} classify fit --config FILE)")
    return argv[0], argv[1], [_with_underscores(arg) for arg in argv[2:]]


def _with_underscores(arg: str) -> str:
    name, equals, value = arg.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else arg
