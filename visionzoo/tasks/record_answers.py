"""What a classifier answered, as the record of a run keeps it.

Legend: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionzoo.data.keys import sample_key
from visionzoo.metrics.calibration import calibration_error, reliability
from visionzoo.models.calibration import Calibration, cross_fitted
from visionzoo.runs.answers import ROWS, TOP, AnswersAbout, fullest, write_answers
from visionzoo.tasks.classify_evaluation import Answers, EvaluationResults
from visionzoo.tasks.engine.learning import Learning


def record_answers(
    path: Path,
    results: EvaluationResults,
    classes: Sequence[str],
    *,
    stage: str,
    source: Any,
    calibration: Calibration | None = None,
    learning: Learning | None = None,
) -> None:
    """Write ``answers.parquet`` of an evaluation; an earlier one goes where there is nothing to write.

    Args:
        path: where it goes.
        results: with the answers.
        classes: K names.
        stage: ``val`` or ``test``.
        source: of the images, for their names; None where it is not known.
        calibration: of the model that is handed on, whose temperature its probabilities have; None for none.
        learning: what the validations before it said.
    """
    found = results.answers
    if found is None or not len(found.labels) or not found.logits.isfinite().all():
        path.unlink(missing_ok=True)
        return
    learning, images = learning or Learning(), len(found.labels)
    cells = _cells(results, found)
    shown = [found.logits.double().softmax(1)]  # without a temperature, and with
    cross = calibration is not None and _is_of(calibration, results)
    if calibration is not None:
        scaled = found.logits.double() / calibration.temperature
        shown.append(cross_fitted(found.logits, found.labels) if cross else scaled.softmax(1))
    about = AnswersAbout(
        stage=stage,
        images=int(results.counts.sum()) if results.matrix is not None else images,
        classes=tuple(map(str, classes)),
        matrix=fullest(cells),
        cells=len(cells),
        validations=learning.validations,
        temperature=None if calibration is None else calibration.temperature,
        cross_fitted=cross,
        reliability=tuple(_diagram(probabilities, found.labels) for probabilities in shown),
        calibration_error=tuple(calibration_error(probabilities, found.labels) for probabilities in shown),
    )
    write_answers(path, _rows(found, results, calibration, source, learning), about)


def _is_of(calibration: Calibration, results: EvaluationResults) -> bool:
    """Whether it was fitted on these very images; on others its temperature is judged as it is."""
    own = results.calibration
    if own is None or own.images != calibration.images:
        return False
    return math.isclose(own.temperature, calibration.temperature, rel_tol=0.02)  # batches change the last digits


def _rows(
    found: Answers, results: EvaluationResults, calibration: Calibration | None, source: Any, learning: Learning
) -> dict[str, Any]:
    pictures = {kept.position: kept.picture for kept in results.pictures}
    found = _with_rows(found, pictures)
    temperature = 1.0 if calibration is None else calibration.temperature
    best = (found.logits.double() / temperature).softmax(1).topk(min(TOP, found.logits.shape[1]))
    position = found.position.tolist()
    first_right, wrong_until, times_right = learning.of(found.position)
    return {
        "sample": [f"image {i}" if source is None else str(source.sample_id(i)) for i in position],
        "position": position,
        "label": found.labels.tolist(),
        "answers": best.indices.tolist(),
        "probabilities": best.values.clamp(0, 1).tolist(),
        "first_right": first_right.tolist(),
        "wrong_until": wrong_until.tolist(),
        "times_right": times_right.tolist(),
        "picture": [pictures.get(i) for i in position],
    }


def _with_rows(found: Answers, pictures: dict[int, bytes]) -> Answers:
    """Those that have a picture, and others, drawn at random and always the same, up to ``ROWS``."""
    positions = found.position.tolist()
    if len(positions) <= ROWS:
        return found
    order = sorted(range(len(positions)), key=lambda i: (positions[i] not in pictures, sample_key(positions[i])))
    kept = sorted(order[:ROWS])
    return Answers(found.logits[kept], found.labels[kept], found.position[kept])


def _cells(results: EvaluationResults, found: Answers) -> list[tuple[int, int, int]]:
    """(label, answer, images) of what is not empty in the confusion matrix."""
    if results.matrix is not None:
        places = np.nonzero(results.matrix)
        return [(int(t), int(p), int(n)) for t, p, n in zip(*places, results.matrix[places], strict=True)]
    pairs, counts = torch.stack([found.labels, found.logits.argmax(1)], 1).unique(dim=0, return_counts=True)
    return [(t, p, n) for (t, p), n in zip(pairs.tolist(), counts.tolist(), strict=True)]


def _diagram(probabilities: Tensor, labels: Tensor) -> tuple[tuple[float, float, float], ...]:
    return tuple((n, sure, right) for n, sure, right in reliability(probabilities, labels).tolist())
