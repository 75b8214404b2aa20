"""A trained classifier as ONNX files: how large and how fast they are, and what they answer for held-out images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from comparison.answers import read_answers
from comparison.evaluation import HeldOut, accuracy
from visionzoo.data.sources.base import Source, Splits
from visionzoo.export.bench import measure_exported
from visionzoo.export.failure import NotTheSame
from visionzoo.export.plans import Wish, make_plan
from visionzoo.export.predictors import load_exported
from visionzoo.export.write import export_plan
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.runs.memory import is_out_of_memory


def export(
    run_folder: Path,
    training: Source,
    held_out: Source,
    *,
    precisions: Sequence[str],
    limit: int | None,
    batch: int,
    rounds: int,
    answers: str,
) -> dict[str, dict[str, Any]]:
    """Export the weights of a run by the product, with its proof, and measure the files with torch's number of threads.

    Args:
        run_folder: of the training; the files go beside it, into ``exported``.
        training: images that files are proved and int8 is calibrated and judged on, so that nothing is chosen on
            held-out ones.
        held_out: images that the files are asked for.
        precisions: fp32, int8.
        limit: of the held-out images, as in :func:`comparison.evaluation.evaluate`; None for all.
        batch: images at a time in throughput.
        rounds: timed batches.
        answers: the file of PyTorch's answers for the same images.

    Returns:
        by precision: ``bytes``; ``seconds`` of a batch (median and quartiles), ``images_per_second`` and
        ``latency_ms`` of one image (p50, p95), by ``threads``; ``accuracy``, ``same_answers`` (share of images whose
        answer is PyTorch's) and the export's ``notes``. Or ``why`` there is no such file.
    """
    out = run_folder.with_name("exported")
    shutil.rmtree(out, ignore_errors=True)  # of an interrupted piece
    classifier = ImageClassifier.load(run_folder, "cpu", calibrated=False)
    held = HeldOut(held_out, classifier, limit)
    theirs = read_answers(answers)
    assert theirs.position.tolist() == held.index, "not the images of the evaluation"
    found: dict[str, dict[str, Any]] = {}
    for precision in precisions:
        folder = out / precision
        try:
            plan = make_plan(classifier, Wish(part="classifier"), run_folder.name)
            done = export_plan(plan, folder, precision=precision, images=Splits(train=training))
            found[precision] = {"bytes": sum(done.sizes.values()), "notes": list(done.notes)}
            found[precision] |= _speed(folder, batch, rounds)
            given = held.answers(load_exported(folder, threads=torch.get_num_threads()), batch)
            found[precision]["accuracy"] = accuracy(given, held.labels)
            found[precision]["same_answers"] = float((given.argmax(1).numpy() == theirs.answer).mean())
        except Exception as error:  # whatever exporters raise, the training is not lost with it
            found[precision] = {"why": _reason(error, out)}
    return found


def _speed(folder: Path, batch: int, rounds: int) -> dict[str, Any]:
    threads = torch.get_num_threads()
    speed = measure_exported(folder, batch=batch, rounds=rounds, threads=threads)
    low, high = speed.spread
    p50, p95 = speed.latency
    return {
        "threads": threads,
        "seconds": {"low": low, "median": speed.seconds, "high": high},
        "images_per_second": batch / speed.seconds,
        "latency_ms": {"p50": 1e3 * p50, "p95": 1e3 * p95},
    }


def _reason(error: Exception, out: Path) -> str:
    """One line, without the folders that only this machine has."""
    if is_out_of_memory(error):
        return "out of memory"
    text = " ".join(str(error).split()).replace(f"{out}/", "")
    return text if isinstance(error, NotTheSame | ValueError) else f"{type(error).__name__}: {text}"
