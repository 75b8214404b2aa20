"""``visionzoo fit``: from a folder of photographs to the best classifier that the minutes allow.

Features first, since they are cheap and often enough; then whatever training there is time for; what wins on training
images that it was not trained on is kept, and the held-out images are looked at once, at the end.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace

import numpy as np
import torch

from visionzoo.auto.data import run_name
from visionzoo.auto.final import FinalLook, final_look
from visionzoo.auto.heads import frozen_stage
from visionzoo.auto.result import Fitted, Request
from visionzoo.auto.session import Session
from visionzoo.auto.tries import Tries
from visionzoo.inference.device import resolve_device
from visionzoo.runs import RunFolder, amend_record, describe_run, write_record
from visionzoo.runs.lineage import lineage_of
from visionzoo.runs.lock import FolderLock
from visionzoo.tasks.engine.interrupt import RunInterruptedError
from visionzoo.tasks.engine.results import draw_report
from visionzoo.terminal import say, shell_quoted


def fit(
    path: str | os.PathLike[str],
    *,
    minutes: float = 10.0,
    backbone: str | None = None,
    weights: str | None = None,
    out: str | os.PathLike[str] | None = None,
    val_path: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> RunFolder:
    """Make the best classifier of labelled photographs that the minutes allow. Says what it does as it goes.

    Args:
        path: labelled images, as ``--data.path`` of ``train.py classify`` takes them: a folder of class folders,
            parquet, a manifest, ``digits``.
        minutes: for everything; kept within 15 % where they suffice for the images to be looked at once.
        backbone: a registered name; None for that of the weights, or a small one that was pretrained without labels.
        weights: a file, folder, run, ``hf-hub:`` or ``timm:`` name; None for the backbone's published ones; ``none``
            trains a small network from nothing.
        out: the run folder; None for ``runs/fit-<data>-<backbone>``.
        val_path: held-out images of their own. None takes the data's validation or test split, else a fifth.
        image_size: pixels; None for what suits network, images and minutes.
        seed: of everything that is random.
        device: None for a GPU where there is one, otherwise the CPU.

    Returns:
        the run folder: ``ImageClassifier.load`` and everything else that reads a run reads it.

    Raises:
        FileNotFoundError: for a path or weights that are not there.
        ValueError: for data that nothing can be learned from, minutes that are not above 0, a folder that holds
            something, or weights that do not fit.
        RunInterruptedError: after a Ctrl-C in training; the best so far is in the run folder.
    """
    request = Request(
        path=os.fspath(path),
        minutes=float(minutes),
        val_path=val_path,
        backbone=backbone,
        weights=weights,
        image_size=image_size,
        seed=seed,
    )
    return _run(request, None if out is None else RunFolder(os.fspath(out)), resolve_device(device), None)


def resume(
    folder: str | os.PathLike[str], *, minutes: float | None = None, device: str | torch.device | None = None
) -> RunFolder:
    """Go on with a run of :func:`fit` that was stopped, or that gets more time.

    Args:
        folder: its run folder.
        minutes: from now on; None for as many as it was given first.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError, ValueError: for a folder that is no such run; and as :func:`fit`.
    """
    run = RunFolder(os.fspath(folder))
    if not run.path.is_dir():
        raise FileNotFoundError(f"there is no run folder {run.path}; `visionzoo fit PHOTOS` makes one")
    before = Fitted.read(run.path)
    request = before.request if minutes is None else replace(before.request, minutes=float(minutes))
    return _run(request, run, resolve_device(device), before)


def _run(request: Request, folder: RunFolder | None, device: torch.device, before: Fitted | None) -> RunFolder:
    begun = time.monotonic()
    if not request.minutes > 0:
        raise ValueError(f"minutes={request.minutes:g} must be above 0; 10 are usual, 1 is enough for small images")
    if folder is not None and before is None and folder.path.exists() and any(folder.path.iterdir()):
        raise ValueError(f"{folder.path} is not empty; go on with a run of fit by --resume, or give another --out")
    session = Session.open(request, device, before, begun)
    folder = folder or RunFolder.create("runs", run_name(request.path, session.network.model.name))
    folder.path.mkdir(parents=True, exist_ok=True)
    resume_command = f"visionzoo fit --resume {shell_quoted(str(folder.path))}"
    lock = FolderLock(folder.path)
    try:
        session.say_plan()
        record = _record(session)
        record.write(folder.path)
        heads = frozen_stage(session, folder.path)
        record = replace(record, trials=tuple(session.trials), kept=heads.choice.name)
        record.write(folder.path)
        tries = Tries(session, heads, folder, resume_command, kept=heads.choice.name)
        tries.run()
        record = replace(record, trials=tuple(session.trials), kept=tries.kept)
        if tries.stopped is None and session.final_count:
            which = {"path": request.path, "val_path": request.val_path}
            record = _looked(record, final_look(folder, which, session.batch, device, seed=request.seed))
        else:  # that writes what is known of the run, too
            write_record(folder, describe_run(seed=request.seed, data={"path": request.path}))
        lineage = lineage_of([session.network.weights])
        amend_record(folder, ancestors=[asdict(ancestor) for ancestor in lineage])
        record = replace(record, minutes=session.elapsed + (0.0 if before is None else before.minutes))
        record.write(folder.path)
        draw_report(folder)  # once more, with the table of what was tried
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped. What was computed is kept; go on with:\n  {resume_command}") from None
    finally:
        lock.release()
    _say_end(record, session, folder)
    if tries.stopped is not None:
        text = f"stopped: the best so far is kept, not scored on the held-out images. Go on with:\n  {resume_command}"
        raise RunInterruptedError(text, tries.stopped.code)
    return folder


def _record(session: Session) -> Fitted:
    counts = np.bincount(session.train.targets[session.train.targets >= 0])
    return Fitted(
        request=session.request,
        network=session.network.origin,
        image_size=session.network.model.preprocess.image_size[0],
        data=session.photos.fingerprint,
        train_images=session.photos.labelled,
        train_limit=session.train_limit,
        classes=len(session.classes),
        largest_class=float(counts.max() / counts.sum()),
        trials=() if session.before is None else session.before.trials,
    )


def _looked(record: Fitted, look: FinalLook) -> Fitted:
    return replace(record, final_accuracy=look.accuracy, final_images=look.images, final_error=look.error)


def _say_end(record: Fitted, session: Session, folder: RunFolder) -> None:
    say(f"\n{record.to_text()}")
    say(f"run folder: {folder.path}; {session.elapsed:.1f} minutes")
    say(f"next: visionzoo predict {shell_quoted(str(folder.path))} new.jpg", flush=True)
