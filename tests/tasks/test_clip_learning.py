"""What CLIP is for: names of things that were never seen, put together from words that were."""

from __future__ import annotations

from pathlib import Path

import pytest

import visionzoo as vz
from visionzoo.cli.train import run
from visionzoo.data.clip import ClipData
from visionzoo.data.sources.caption_readers import held_out_shapes
from visionzoo.data.sources.shapes import COMBINATIONS, describe

CONFIG = Path(__file__).parents[2] / "configs" / "clip" / "shapes.yaml"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_unseen_combinations_of_colour_and_shape_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(["clip", "fit", "--config", str(CONFIG), "--run_dir", str(folder), "--trainer.accelerator", "cpu"]) == 0
    data = ClipData("shapes:8000", holdout="diagonal")
    held = {describe([pair]) for pair in held_out_shapes("diagonal")}
    assert data.train_source is not None
    assert data.val_source is not None
    assert not held & {text for i in range(len(data.train_source)) for text in data.train_source.captions(i)}
    labels = [describe([pair]) for pair in COMBINATIONS]
    truth = [data.val_source.captions(i)[0] for i in range(len(data.val_source))]
    assert set(truth) == held

    answers = vz.ZeroShotClassifier.load(folder, labels, device="cpu").predict(
        [data.val_source.read(i) for i in range(len(truth))], top_k=1, batch_size=100
    )
    accuracy = sum(answer[0][0] == name for answer, name in zip(answers, truth, strict=True)) / len(truth)
    assert accuracy > 15 / len(labels)  # chance is 1 of 48 labels
