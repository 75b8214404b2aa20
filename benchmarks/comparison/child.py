"""One piece of work in a process of its own: it reads what to do from JSON and writes the result as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from visionzoo.files import write_json
from visionzoo.runs.memory import is_out_of_memory

OUT_OF_MEMORY = "out of memory"


def work(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Do one piece: ``speed``, ``pace`` (the seconds of a step), ``pretrain``, ``train`` (with the evaluation and the
    export that follow) or ``probe``."""
    if kind == "speed":
        from comparison.speed import measure

        return measure(**spec)
    if kind == "probe":
        from comparison.probing import probe

        return probe(**spec)
    if kind == "pretrain":
        from comparison.pretraining import Pretraining, pretrain

        return pretrain(Pretraining(**spec["run"]), Path(spec["folder"]), Path(spec["weights"]))
    from comparison.recipes import Recipe
    from comparison.training import Run, open_data, train

    recipe: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["run"]["recipe"].items()}
    run = Run(**{**spec["run"], "recipe": Recipe(**recipe)})
    folder = Path(spec["folder"])
    done = folder / "trained.json"  # training and evaluation are kept apart, so that either can be interrupted
    if not done.is_file():
        write_json(done, train(run, folder))
    trained = json.loads(done.read_text())
    if kind == "pace":
        return trained
    from comparison.evaluation import evaluate
    from visionzoo.inference.classifier import ImageClassifier

    data = open_data(run.path, run.val_path, train_limit=run.fraction, seed=run.seed)
    assert data.val_source is not None
    found = trained | evaluate(
        ImageClassifier.load(folder, device=run.device, calibrated=False), data.val_source, **spec["evaluation"]
    )
    if not spec["export"]["precisions"]:
        return found
    from comparison.exporting import export

    assert data.train_source is not None
    return found | {"exported": export(folder, data.train_source, data.val_source, **spec["export"])}


def main(kind: str, spec_file: str, result_file: str) -> int:
    """Returns 0 when a result was written, 130 or 75 when it was interrupted, 1 after an error that is on stderr."""
    interrupted: tuple[type[Any], ...] = ()
    if kind != "speed":  # whose process imports no Lightning: its memory is that of the model
        from visionzoo.tasks.engine.interrupt import RunInterruptedError

        interrupted = (RunInterruptedError,)
    task = json.loads(Path(spec_file).read_text())
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    try:
        result: dict[str, Any] = {"status": "done", "result": work(kind, task["spec"])}
    except interrupted as stopped:
        return stopped.code
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        result = {"status": OUT_OF_MEMORY, "result": None}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(result_file, result)
    return 0
