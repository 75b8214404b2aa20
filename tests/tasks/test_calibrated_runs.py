"""A training run keeps what its held-out images say of its probabilities, and it is that of the exported weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Run, tiny_data, tiny_task

import visionzoo as vz
from visionzoo.models.bundle import read_config
from visionzoo.models.calibration import LEAST, Calibration
from visionzoo.tasks import classify_evaluation
from visionzoo.tasks.classify_evaluation import ClassificationEvaluation

pytestmark = pytest.mark.filterwarnings("ignore")


def expected(folder: Path, images: int = 64) -> Calibration:
    """The calibration of the exported weights on the first batch of held-out digits."""
    model, _ = vz.models.bundle.load_bundle(folder)
    task = tiny_task()
    task.use_model(model, 3)
    data = tiny_data()
    data.preprocess = task.preprocess
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        return Calibration.fit(task.eval()(batch.images)[:images], batch.labels[:images])


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}])
def test_it_is_that_of_the_exported_weights(train: Callable[..., Run], options: dict[str, Any]) -> None:
    run = train(epochs=3, **options)
    found = read_config(run.folder.path).calibration
    assert found is not None
    assert found.images == 64
    again = expected(run.folder.path)
    assert found.temperature == pytest.approx(again.temperature, rel=1e-4)
    assert found.sets == pytest.approx(again.sets, abs=1e-4)


def test_no_calibration_without_an_evaluation_or_with_too_few_images(train: Callable[..., Run]) -> None:
    run = train(trainer={"limit_val_batches": 0})
    assert read_config(run.folder.path).calibration is None
    run = train(name="few", data={"eval_batch_size": LEAST - 1})
    assert read_config(run.folder.path).calibration is None


def fill(evaluation: ClassificationEvaluation, order: torch.Tensor, size: int) -> Any:
    logits = torch.randn(len(order), 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(order)) % 3
    for some in order.split(size):
        images = torch.zeros(len(some), 3, 2, 2, dtype=torch.uint8)
        evaluation.update(logits[some], labels[some], torch.tensor(0.0), images, some)
    return evaluation.compute()[1], logits, labels


def test_answers_do_not_depend_on_batches_and_start_afresh() -> None:
    evaluation = ClassificationEvaluation(3)
    first, logits, labels = fill(evaluation, torch.arange(50), 50)
    assert torch.equal(first.answers.logits, logits)
    assert torch.equal(first.answers.labels, labels)
    second = fill(evaluation, torch.arange(50).flip(0), 7)[0]
    assert torch.equal(second.answers.logits, logits)
    assert first.calibration == second.calibration
    assert first.calibration is not None


def test_of_very_many_logits_those_of_random_images_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify_evaluation, "LOGITS_LIMIT", 3 * 100)
    kept = fill(ClassificationEvaluation(3), torch.arange(1000), 64)[0].answers
    assert len(kept.labels) == 100
    assert torch.equal(kept.position, fill(ClassificationEvaluation(3), torch.arange(1000), 501)[0].answers.position)
    assert 350 < float(kept.position.double().mean()) < 650
    assert torch.equal(kept.labels, kept.position % 3)


def test_a_diverged_model_and_several_labels_have_none() -> None:
    evaluation = ClassificationEvaluation(3)
    images = torch.zeros(30, 3, 2, 2, dtype=torch.uint8)
    evaluation.update(torch.full((30, 3), torch.nan), torch.arange(30) % 3, torch.tensor(0.0), images, torch.arange(30))
    assert evaluation.compute()[1].calibration is None
    several = ClassificationEvaluation(3, multi_label=True)
    several.update(torch.randn(30, 3), torch.ones(30, 3), torch.tensor(0.0), images, torch.arange(30))
    assert several.compute()[1].calibration is None
