"""The callbacks of a run, in the order that they need: later ones rely on what earlier ones have done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback

from visionzoo.runs import RunFolder
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.engine.bad_samples import BadSamples
from visionzoo.tasks.engine.batch_size import ShareBatchSize
from visionzoo.tasks.engine.checkpoint import Checkpoints
from visionzoo.tasks.engine.ema import EMA
from visionzoo.tasks.engine.flags import Flags
from visionzoo.tasks.engine.guard import NonFinite
from visionzoo.tasks.engine.interrupt import Interrupt
from visionzoo.tasks.engine.memory import PeakMemory
from visionzoo.tasks.engine.progress import EpochLines
from visionzoo.tasks.engine.ranks import Ranks
from visionzoo.tasks.engine.results import Results
from visionzoo.tasks.engine.resume import Resume
from visionzoo.tasks.engine.run_files import RunFiles
from visionzoo.tasks.engine.seeding import SeedBatches


def run_files(
    data: Any,
    folder: RunFolder | None,
    *,
    data_options: Mapping[str, Any],
    config: str | None,
    seed: int | bool,
    resume_command: str,
) -> list[Callback]:
    """What every run has, also one that only evaluates.

    Args:
        data: the data module.
        folder: of the run; None on ranks other than 0.
        data_options: plain options of the data module, which a resumed run is held against.
        config: the text of ``config.yaml``; None writes none.
        seed: of the run; False where it is not seeded.
        resume_command: what a person types to go on; empty for an evaluation.
    """
    return [
        Resume(int(seed), dict(data_options)),
        RunFiles(folder, config, seed=None if seed is False else int(seed)),
        ShareBatchSize(),
        SeedBatches(int(seed)),
        BadSamples(getattr(data, "max_bad_share", 1.0)),
        Results(),
        Ranks(resume_command),
    ]


def guards(
    task: VisionTask,
    own: Sequence[Callback],
    *,
    max_nonfinite_steps: int,
    save_every_n_steps: int,
    resume_command: str,
) -> list[Callback]:
    """What training has after :func:`run_files`: the task's callbacks and ``own``, then what guards, stops and saves.

    Args:
        task: what is trained.
        own: such as a progress bar, or what stops early.
        max_nonfinite_steps, save_every_n_steps: as on the command line.
        resume_command: what a person types to go on.
    """
    flags = Flags()
    return [
        *task.run_callbacks(),
        *([EMA(task.ema_decay)] if task.ema_decay else []),
        *own,
        NonFinite(max_nonfinite_steps, flags),
        EpochLines(),
        PeakMemory(),
        Interrupt(resume_command, flags),
        Checkpoints(save_every_n_steps),
    ]
