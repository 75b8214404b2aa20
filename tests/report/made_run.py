"""A run folder as training leaves it, without the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from visionzoo.files import write_csv, write_json, write_text
from visionzoo.metrics.classification import class_scores
from visionzoo.runs import RunFolder, describe_run, write_record
from visionzoo.tasks.classify_evaluation import ClassificationEvaluation, EvaluationResults
from visionzoo.tasks.engine.learning import Learning
from visionzoo.tasks.pictures import LISTED, PictureChoice
from visionzoo.tasks.record_answers import record_answers
from visionzoo.viz import per_class_csv


class NamedSource:
    """Names of samples."""

    def __init__(self, pattern: str = "val/{}.jpg") -> None:
        self.pattern = pattern

    def sample_id(self, i: int) -> str:
        return self.pattern.replace("{}", f"{i:06d}")


def answers(images: int, classes: int, share: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(N, K) logits and (N,) labels, of which about ``share`` are right."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=random)  # those of the data, whatever the seed
    if seed:
        random.manual_seed(seed)
    logits = torch.randn(images, classes, generator=random)
    right = torch.rand(images, generator=random) < share
    logits[right, labels[right]] += 6
    return logits, labels


def picture_of(position: int, edge: int = 16) -> Tensor:
    """(3, edge, edge) uint8 that no other position has: its bits as bright and dark columns."""
    image = torch.zeros(3, edge, edge, dtype=torch.uint8)
    for bit in range(edge):
        image[:, :, bit] = 255 if position >> bit & 1 else 0
    return image


def evaluated(
    logits: Tensor, labels: Tensor, edge: int = 16, batch: int = 64, noise: bool = False
) -> EvaluationResults:
    """What an evaluation says of (N, K) and (N,)."""
    evaluation = ClassificationEvaluation(logits.shape[1])
    evaluation.pictures = PictureChoice()
    random = torch.Generator().manual_seed(1)
    for index in torch.arange(len(labels)).split(batch):
        if noise:
            images = torch.randint(256, (len(index), 3, edge, edge), dtype=torch.uint8, generator=random)
        else:
            images = torch.stack([picture_of(int(i), edge) for i in index])
        evaluation.update(logits[index], labels[index], torch.tensor(0.0), images, index)
    return evaluation.compute()[1]


def learned(logits: Tensor, labels: Tensor, epochs: int = 4) -> Learning:
    """Validations in which more and more is right."""
    learning, right = Learning(), logits.argmax(1) == labels
    for epoch in range(1, epochs + 1):
        known = right & (torch.arange(len(labels)) % epochs < epoch)
        learning.take(torch.arange(len(labels)), known, epoch)
    return learning


def make_run(
    path: Path,
    images: int = 200,
    classes: Sequence[str] = tuple("abcdefghij"),
    *,
    samples: str = "val/{}.jpg",
    edge: int = 16,
    noise: bool = False,
    bad: Sequence[tuple[str, str, str]] = (),
    share: float = 0.7,
    seed: int = 0,
) -> RunFolder:
    """A finished classification run with answers for so many held-out images, of which about ``share`` are right."""
    folder = RunFolder(path)
    folder.path.mkdir(parents=True)
    logits, labels = answers(images, len(classes), share, seed)
    results, learning = evaluated(logits, labels, edge, noise=noise), learned(logits, labels)
    assert learning.slowest(LISTED)
    write_text(folder.config_yaml, "model:\n  backbone: vit_nano_patch4_32\n")
    config = {"task": "classify", "architecture": {"backbone": "vit_nano_patch4_32"}, "labels": list(classes)}
    write_json(folder.model_config, config)
    write_record(
        folder, describe_run(seed=0, data={"path": "photos", "fingerprint": "f" * 32}, argv=["train.py", "fit"])
    )
    rows = [
        [e, s, 1e-3, 2 / (1 + s), 1.5 / (1 + s) if s % 10 == 9 else ""] for e, s in ((s // 10, s) for s in range(40))
    ]
    write_csv(folder.metrics_csv, ["epoch", "step", "lr", "train/loss", "val/loss"], rows)
    scores = {"loss": 0.5, "accuracy": 0.7}
    write_json(folder.results, {"stage": "val", "which": "best epoch, 4 of 4", "line": "", "scores": scores})
    per_class_csv(class_scores(results.counts), classes, folder.per_class)
    if bad:
        write_csv(folder.bad_samples, ["sample", "split", "reason"], bad)
    known = {"source": NamedSource(samples), "calibration": results.calibration, "learning": learning}
    record_answers(folder.answers, results, classes, stage="val", **known)
    return folder
