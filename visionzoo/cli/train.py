"""``train.py TASK fit|validate|test|predict``: one LightningCLI for every task."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from visionzoo.cli.batch_size import find_batch_size
from visionzoo.cli.imports import IMPORT_HELP, take_option
from visionzoo.cli.options import OneLineParser, check_loggers, check_options
from visionzoo.cli.processes import StopSignal, leave_together
from visionzoo.cli.resume import resume_arguments
from visionzoo.cli.short_help import short_page, wants_all
from visionzoo.cli.suggest import UsageError
from visionzoo.cli.tasks import TASKS, split_arguments
from visionzoo.models.carried import copies_in
from visionzoo.plugins import classes_in, import_typed, is_trusted, module_of, remembered, typed
from visionzoo.runs import FolderLock, RunFolder
from visionzoo.signals import TRY_AGAIN
from visionzoo.tasks import optim
from visionzoo.tasks.base import VisionTask, summarize_parameters
from visionzoo.tasks.contract import check_data, check_task
from visionzoo.tasks.engine.assemble import guards, run_files
from visionzoo.tasks.engine.checkpoint import AtomicCheckpointIO, Checkpoints, read_options
from visionzoo.tasks.engine.disk import what_is_lost
from visionzoo.tasks.engine.finish import held_out_scores, make_up
from visionzoo.tasks.engine.fsdp import FullySharded
from visionzoo.tasks.engine.interrupt import RunInterruptedError
from visionzoo.tasks.engine.loggers import Events, MetricsFile
from visionzoo.tasks.engine.predictions import Predictions
from visionzoo.tasks.engine.progress import ProgressBar
from visionzoo.tasks.engine.quiet import quiet_lightning
from visionzoo.tasks.engine.ranks import RankDiedError
from visionzoo.tasks.engine.results import Results, draw_report
from visionzoo.tasks.engine.stopping import Stopping
from visionzoo.tasks.lightning_private import leave_signals_alone
from visionzoo.tasks.options import plain, without_starts
from visionzoo.terminal import say, shell_quoted

#: Options that say where and how to run, not what: they stay out of ``config.yaml``, so that it reruns anywhere.
NOT_IN_CONFIG = ("config", "run_dir", "ckpt_path", "print_groups")
#: How the first line of a run's ``config.yaml`` begins.
RUNS_AGAIN = "# Runs this again:"


class TrainCLI(LightningCLI):
    """LightningCLI over one task, with a run folder, our callbacks and one-line errors.

    Args:
        name: key of :data:`TASKS`.
        subcommand: one of :data:`SUBCOMMANDS`; only its parser is built, which saves seconds.
        args: what follows on the command line.
        program: how the user called us, for the resume command.
    """

    def __init__(self, name: str, subcommand: str, args: Sequence[str], program: str) -> None:
        self.entry, self.task_name, self.program = TASKS[name], name, program
        self._only = subcommand
        self._paths: dict[str, str | None] = {}
        rest = list(args)  # as they are typed: the parser would read them as YAML
        for option in ("run_dir", "ckpt_path"):
            rest, values = take_option(rest, option)
            self._paths[option] = values[-1] if values else None
        self._asked: Any = None  #: the options as they are written down, where others build the task
        self._folder: RunFolder | None = None
        self._lock: FolderLock | None = None
        self._made: list[Path] = []  # folders that are new, innermost first
        task, data = self.entry.load()
        try:
            super().__init__(
                task,
                data,
                save_config_callback=None,
                trainer_defaults={"num_sanity_val_steps": 0, "log_every_n_steps": 10, "use_distributed_sampler": False},
                seed_everything_default=0,
                parser_class=OneLineParser,
                parser_kwargs={"prog": f"{program} {name}"},
                args=[subcommand, *rest],
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except StopSignal as stopped:
            raise RunInterruptedError(self._stopped_by(str(stopped)), TRY_AGAIN) from None
        finally:  # a command that was refused leaves no empty folder
            if self._lock is not None:
                self._lock.release()
            for folder in self._made:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()

    # ---- the parser -----------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that was asked for."""
        return {self._only: LightningCLI.subcommands()[self._only] | {"weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our options beside those of task, data and trainer, and the links from data to task."""
        parser.add_argument(
            "--run_dir", type=str | None, default=None,
            help="Folder of the run; runs/<task>-<data>-<backbone> with a suffix where that is taken.",
        )  # fmt: skip
        parser.add_argument(
            "--print_groups", type=bool, default=False, help="Print lr and weight decay per group, and end."
        )
        parser.add_argument(
            "--save_every_n_steps", type=int, default=0,
            help="Optimizer steps between saves of last.ckpt inside an epoch; 0 saves at the end of epochs.",
        )  # fmt: skip
        parser.add_argument(
            "--early_stopping", type=int, default=0,
            help="Stop after this many validations without a better score; 0 never stops early.",
        )  # fmt: skip
        parser.add_argument(
            "--max_nonfinite_steps", type=int, default=10,
            help="Steps in a row without a finite loss and gradient until the run goes back to its last checkpoint.",
        )  # fmt: skip
        parser.add_argument(
            "--halve_on_oom", type=bool | Literal["auto"], default="auto",
            help="Repeat a step that runs out of memory in parts of half the size; auto does so in a single process. "
            "With several, true has gradients exchanged after the backward pass, not during it.",
        )  # fmt: skip
        parser.add_argument("--import", type=list[str], default=[], help=IMPORT_HELP)  # imported before parsing
        for source, target, through in self.entry.links:
            parser.link_arguments(f"data.{source}", f"model.{target}", compute_fn=through, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the names of all options, then parse. Paths stay as they were typed."""
        options = self._parser(self._only)._actions
        if not {"-h", "--help"}.isdisjoint(args):
            say(short_page(options, f"{self.program} {self.task_name}", self._only))
            raise SystemExit(0)
        args = ["--help" if wants_all(arg) else arg for arg in args]
        known = [s.lstrip("-") for action in options for s in action.option_strings]
        check_options(args[1:], known)
        self.config = parser.parse_args(args)
        for option, path in self._paths.items():
            if path not in (None, "null"):
                self.config[self._only][option] = path
        check_loggers(self.config[self._only]["trainer"].get("logger"))
        for path in classes_in(self.config[self._only]["trainer"].as_dict()):
            if not is_trusted(path):  # the user named it, or what it is in, so a run that goes on may be told again
                import_typed(module_of(path))

    def _parse_ckpt_path(self) -> None:
        """Nothing: our checkpoints hold no options, and Lightning would read the file here, before our own checks."""

    # ---- the trainer ----------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Measure the batch size where it is ``auto``."""
        # Lightning's own worker seeding would import Lightning into every worker; our data seed each sample themselves
        os.environ["PL_SEED_WORKERS"] = "0"
        self._measured = ""
        if self._get(self.config, "data").get("batch_size") == "auto":
            self._choose_batch_size()

    def _choose_batch_size(self) -> None:
        """Put a number in the place of ``auto``, before anything is built and before it is written down."""
        if self._only != "fit":
            raise UsageError("data.batch_size=auto is for fit, which measures a training step; give a number")
        size = 1  # ranks other than 0 hear of it when all are there
        if _global_rank() == 0:
            size, self._measured = find_batch_size(self.task_name, self._config_text(), typed())
        self.config[self._only]["data"]["batch_size"] = size

    def instantiate_classes(self) -> None:
        """A run that goes on has its weights: it is built without those that it began with, which may be gone."""
        path = self._get(self.config, "ckpt_path")
        model = self._get(self.config, "model")
        other = {}
        if path:  # whatever it has a copy of is its own
            copies = {k: v for k, v in copies_in(Path(path).parent).items() if k in model.as_dict()}
            other = without_starts(model.as_dict(), *read_options(path)) | copies
        if other:
            self._asked = self.config.clone()
            for name, value in other.items():
                model[name] = value
        super().instantiate_classes()
        for name in other:  # a checkpoint keeps what the run was given
            self.model.hparams[name] = plain(self._asked[self._only]["model"][name])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with run folder, loggers and callbacks, once task and data are known to be whole."""
        check_task(self.model)
        check_data(self.datamodule)
        options = self._get(self.config_init, "trainer")
        if _global_rank() == 0 and not self._get(self.config, "print_groups"):
            self._folder = self._make_folder()
            self._lock = FolderLock(self._folder.path)
        if (logger := options.get("logger")) is not False:
            added = [] if logger in (None, True) else logger if isinstance(logger, list) else [logger]
            kwargs["logger"] = [*self._loggers(), *added]
        if options.get("strategy") == "fsdp":
            kwargs["strategy"] = FullySharded()
        plugins = options.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        bar = sys.stdout.isatty() and options.get("enable_progress_bar") is not False
        kwargs["enable_progress_bar"] = bar
        kwargs["enable_model_summary"] = False
        self.trainer_defaults["callbacks"] = self._callbacks(bar)
        trainer = super().instantiate_trainer(**kwargs)
        leave_signals_alone(trainer)
        return trainer

    def _make_folder(self) -> RunFolder:
        if given := self._get(self.config, "run_dir"):
            folder = RunFolder(given)
            # killed before its first save, a run has nothing to lose and starts again where it stood: at the beginning
            saved = any(file.is_file() for file in (folder.last, folder.best, folder.model))
            goes_on = self._get(self.config, "ckpt_path")
            if saved and not goes_on and self._only == "fit":
                again = f"--resume {shell_quoted(given)}"
                raise UsageError(f"{given} holds a run; go on with it by {again}, or give another --run_dir")
            others = [file for file in (folder.config_yaml, folder.metrics_csv, folder.report) if file.is_file()]
            if others and not goes_on and not folder.record.is_file() and not _is_ours(folder.config_yaml):
                raise UsageError(f"{given} holds a {others[0].name} that no run has written; give another --run_dir")
            self._made = [p for p in (folder.path, *folder.path.parents) if not p.exists()]
            folder.path.mkdir(parents=True, exist_ok=True)
            return folder
        parents = [p for p in (Path("runs"),) if not p.exists()]
        folder = RunFolder.create("runs", self._run_name())
        self._made = [folder.path, *parents]
        return folder

    def _run_name(self) -> str:
        path = str(getattr(self.datamodule, "path", None) or self._get(self.config, "data").get("path") or "data")
        data = re.split(r"[\\/]", path.rstrip("\\/"))[-1].split(".")[0] or "data"
        backbone = getattr(self.model, "backbone_name", "model").removeprefix("timm/")
        suffix = "" if self._only == "fit" else f"-{self._only}"
        return f"{self.task_name}-{data}-{backbone}{suffix}"

    def _loggers(self) -> list[Logger]:
        """``metrics.csv`` always; TensorBoard's events for training, where they are read while it runs."""
        if self._folder is None:
            return [MetricsFile(None)]
        loggers: list[Logger] = [MetricsFile(self._folder.metrics_csv if self._only == "fit" else None)]
        if self._only == "fit":
            loggers.append(Events(self._folder.path))
        return loggers

    def _callbacks(self, bar: bool) -> list[Callback]:
        seed = self._get(self.config, "seed_everything")
        fits = self._only == "fit"
        found: list[Callback] = run_files(
            self.datamodule,
            self._folder,
            data_options=plain(self._get(self.config, "data").as_dict()),
            config=self._config_text() if fits else None,
            seed=seed,
            resume_command=self.resume_command() if fits else "",
        )
        if self._only == "predict":
            found.append(Predictions())
        if not fits:
            return found
        task: VisionTask = self.model
        task.halve_on_oom = self._get(self.config, "halve_on_oom")
        own: list[Callback] = []
        if patience := self._get(self.config, "early_stopping"):
            own.append(Stopping(task.monitor, task.monitor_mode, patience))
        if bar:
            own.append(ProgressBar())
        return [
            *found,
            *guards(
                task,
                own,
                max_nonfinite_steps=self._get(self.config, "max_nonfinite_steps"),
                save_every_n_steps=self._get(self.config, "save_every_n_steps"),
                resume_command=self.resume_command(),
            ),
        ]

    def _config_text(self) -> str:
        config = (self._asked or self.config)[self._only].clone()
        for key in NOT_IN_CONFIG:
            config.pop(key, None)
        config["import"] = remembered()
        if not config["import"]:
            config.pop("import")
        text = self._parser(self._only).dump(config, skip_none=False, skip_validation=True)
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        path = shell_quoted(f"{self._path()}/config.yaml")
        return f"{RUNS_AGAIN} {self._command()} --config {path}\n{body}\n"

    # ---- running --------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        if self._get(self.config, "print_groups"):
            lr = self.model.peak_lr(self.trainer, self.datamodule)
            say(optim.group_table(self.model.param_groups(lr)))
            return
        super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Say what was loaded and measured; score what is there before training where the task wants it."""
        if self._measured:
            self._say(self._measured)
        goes_on = self._get(self.config, "ckpt_path")
        if self.model.opening_line and not goes_on:
            self._say(self.model.opening_line)
        if self.model.score_before and not goes_on:
            scores = held_out_scores(self.trainer, self.model, self.datamodule)
            self.model.before = {name.removeprefix("val/"): value for name, value in scores.items()}
        self._say(f"{summarize_parameters(self.model.model)}; run folder {self._path()}")

    def after_fit(self) -> None:
        """Evaluate what was exported, as it is on the disk, so that the printed number is that of the file."""
        folder = self.model.run_folder
        for stopping in self.trainer.early_stopping_callbacks:
            if isinstance(stopping, Stopping) and (why := stopping.why(self.trainer)):
                self._say(why)
        validates = bool(self.trainer.limit_val_batches) and self.datamodule.val_dataloader() != []
        if not self._results().trained:
            self._say("nothing was left to train: the run had reached its end. A larger --trainer.max_epochs goes on")
            make_up(self.trainer, self.model, self.datamodule, validates=validates)
        if validates and folder.model.is_file():
            self.model.use_exported(folder)
            self.trainer.loggers = []  # the score of the best weights is no point of the learning curve
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        elif self.trainer.is_global_zero:
            draw_report(folder)  # the one at the end of training was drawn before the export
        self._report(self._checkpoints().which())

    def before_validate(self) -> None:
        self.config_init["validate"]["verbose"] = False  # our line says it

    def before_test(self) -> None:
        self.config_init["test"]["verbose"] = False

    def after_validate(self) -> None:
        """Say the score and where the pictures are."""
        self._report()

    def after_test(self) -> None:
        """Say the score and where the pictures are."""
        self._report()

    def after_predict(self) -> None:
        """Say where the predictions are."""
        self._report()

    def _report(self, which: str = "") -> None:
        if line := self._results().line:
            self._say(f"{which}: {line}" if which else line)
        self._say(f"run folder: {self._path()}")

    def check_written(self) -> None:
        """Raise OSError for what a full disk has kept from being written."""
        if self._folder is not None and (lost := what_is_lost(self._folder.path)):
            go_on = f"; once there is space: {self.resume_command()}" if self._only == "fit" else ""
            raise OSError(f"could not be written: {lost}. What was there before is whole{go_on}")

    def _stopped_by(self, name: str) -> str:
        if self._folder is not None and self._only == "fit" and self._folder.last.is_file():
            return f"stopped by {name}. Go on with:\n  {self.resume_command()}"
        return f"stopped by {name} before anything was saved"

    def _results(self) -> Results:
        return next(c for c in self.trainer.callbacks if isinstance(c, Results))  # type: ignore[attr-defined]

    def _checkpoints(self) -> Checkpoints:
        return next(c for c in self.trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]

    def _path(self) -> str:
        return "" if self._folder is None else str(self._folder.path)

    def _say(self, text: str) -> None:
        if self.trainer.is_global_zero:
            say(text, flush=True)

    def resume_command(self) -> str:
        """What continues this run."""
        return f"{self._command()} --resume {shell_quoted(self._path())}"

    def _command(self) -> str:
        return " ".join([self.program, self.task_name, "fit", *(f"--import {shell_quoted(name)}" for name in typed())])


def run(argv: Sequence[str], program: str = "python train.py") -> int:
    """Run a training command. Returns the exit code: 0 well, 1 failed, 2 the user's error, 130 stopped by Ctrl-C,
    75 stopped by SIGTERM or SIGUSR1, to be started again with ``--resume``.

    Set VISIONZOO_TRACEBACK=1 to see where an error comes from.
    """
    quiet_lightning()
    try:
        name, subcommand, args = split_arguments(argv, program)
        command = TrainCLI(name, subcommand, resume_arguments(args, subcommand), program)
        leave_together()
        command.check_written()
    except RunInterruptedError as stopped:
        if _global_rank() == 0:
            say(stopped, file=sys.stderr)
        return stopped.code
    except RankDiedError:
        return 1  # it has been said
    except (ValueError, OSError, MemoryError, MisconfigurationException) as error:
        if os.environ.get("VISIONZOO_TRACEBACK"):
            raise
        say(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, FileNotFoundError)) else 1
    return 0


def _is_ours(config: Path) -> bool:
    """Whether a run has written this configuration: it may have been killed before it wrote more."""
    return config.is_file() and config.read_bytes().startswith(RUNS_AGAIN.encode())


def _global_rank() -> int:
    """As Lightning reads it from the launcher's environment, before there is a trainer to ask."""
    rank: Any = getattr(rank_zero_only, "rank", 0)
    return rank or 0
