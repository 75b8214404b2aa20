"""The classification task: what it learns, trains, weighs, evaluates and exports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Run, run_training, take, tiny_task

import visionzoo as vz
from visionzoo.models.bundle import load_bundle
from visionzoo.models.classifier import create_classifier
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.classify_evaluation import MISTAKES, ClassificationEvaluation
from visionzoo.types import ImageBatch


def batch(count: int = 8, classes: int = 10, multi_label: bool = False) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    if multi_label:
        labels = torch.randint(0, 2, (count, classes), generator=generator).float()
    return ImageBatch(images, labels, torch.arange(count))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    plain = {"crop": "resize", "policy": "none", "hflip": 0.0}
    return run_training(
        tmp_path_factory.mktemp("learned"), epochs=15, lr=3e-3, warmup_steps=6, global_pool="avg", data=plain
    )


@pytest.mark.long
def test_it_learns(learned: Run) -> None:
    losses = [learned.losses[s] for s in sorted(learned.losses)]
    assert sum(losses[:6]) / 6 > 2.0  # ln 10 = 2.3
    assert sum(losses[-6:]) / 6 < 1.9


def test_the_export_answers_as_the_task_does(learned: Run) -> None:
    model, config = load_bundle(learned.folder.path)
    assert config.labels == ()  # nobody has named them
    assert config.architecture["image_size"] == 16
    best = torch.load(learned.folder.best, weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, best[f"model.{name}"]), name


def test_first_loss_is_that_of_the_plain_formula() -> None:
    task, data = tiny_task(label_smoothing=0.1), batch()
    step = take(task.eval(), data)
    logits = task.model(task.normalize(data.images))
    expected = torch.nn.functional.cross_entropy(logits, data.labels, label_smoothing=0.1)
    assert torch.equal(step.loss, expected)
    assert float(step.logs["accuracy"]) == float((logits.argmax(1) == data.labels).float().mean())


def test_multi_label_uses_binary_cross_entropy_and_scores() -> None:
    task, data = tiny_task(num_classes=4, multi_label=True), batch(classes=4, multi_label=True)
    step = take(task.eval(), data)
    logits = task(data.images)
    torch.testing.assert_close(step.loss, torch.nn.functional.binary_cross_entropy_with_logits(logits, data.labels))
    task.update_evaluation(data)
    values = task.finish_evaluation()
    assert set(values) == {"loss", "map", "f1"}
    assert task.results is not None
    assert task.results.counts.shape == (4, 2, 2)
    assert task.monitor == "val/map"


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_weighted_losses_are_the_same_in_parts(loss: str) -> None:
    """What the mean divides by: the weights of the labels, or the images."""
    data = batch()._replace(labels=torch.tensor([0] * 6 + [1] * 2))
    found = []
    for size in (None, 2):
        task = tiny_task(num_classes=2, class_counts=[90, 10], class_weights="balanced", loss=loss)
        loss_of_all = float(take(task, data, size).loss)
        found.append((loss_of_all, torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_balanced_class_weights_reach_the_loss() -> None:
    counts = [10, 30]
    data = batch(classes=2)
    plain, balanced = (
        tiny_task(num_classes=2, class_counts=counts, class_weights=policy).eval() for policy in ("none", "balanced")
    )
    logits = balanced(data.images)
    weights = torch.tensor([40 / 20, 40 / 60])
    expected = torch.nn.functional.cross_entropy(logits, data.labels, weight=weights)
    torch.testing.assert_close(take(balanced, data).loss, expected)
    assert not torch.allclose(take(plain, data).loss, expected)
    assert "class_weights" not in balanced.state_dict()


@pytest.mark.parametrize("policy", ["none", "balanced"])
def test_the_held_out_loss_does_not_depend_on_batches(policy: str) -> None:
    task = tiny_task(num_classes=3, class_counts=[90, 10, 0], class_weights=policy).eval()
    data = batch(12, classes=2)
    data = data._replace(labels=data.labels.index_fill(0, torch.tensor([3]), 2))  # of weight 0
    with torch.no_grad():
        expected = task._loss(task(data.images), data.labels)
        for size in (12, 5, 1):
            for rows in torch.arange(12).split(size):
                task.update_evaluation(ImageBatch(data.images[rows], data.labels[rows], rows))
            torch.testing.assert_close(task.finish_evaluation()["loss"], expected)


# ---- what is trained -----------------------------------------------------------------------------


def test_head_trains_the_head_alone_and_keeps_the_trunk_in_eval_mode() -> None:
    task = tiny_task(finetune="head", drop_path=0.5)
    task.train()
    assert {n for n, p in task.named_parameters() if p.requires_grad} == {"model.head.weight", "model.head.bias"}
    assert task.model.head.training
    assert not task.model.blocks[0].training
    data = batch()
    assert torch.equal(take(task, data).loss, take(task, data).loss)  # no drop path
    task.eval()
    assert not task.model.head.training


@pytest.mark.parametrize("backbone", ["vit_nano_patch4_32", "swin_nano_patch2_window4_32", "timm/resnet10t"])
def test_the_dropout_of_a_linear_probe_is_on(backbone: str) -> None:
    task = tiny_task(backbone=backbone, image_size=32, finetune="head", drop_rate=0.9)
    data = batch()
    images = torch.nn.functional.interpolate(data.images.float(), 32).to(torch.uint8)
    statistics = [b.clone() for n, b in task.named_buffers() if "running" in n]
    task.train()
    assert not torch.equal(task(images), task(images))
    task.eval()
    assert torch.equal(task(images), task(images))
    assert all(map(torch.equal, statistics, (b for n, b in task.named_buffers() if "running" in n)))


def test_what_has_running_statistics_stays_as_it_was_beside_adapters() -> None:
    pytest.importorskip("peft")
    task = tiny_task(backbone="timm/mobilevit_xxs", image_size=64, finetune="lora", lora_rank=2)
    task.train()
    statistics = {n: b.clone() for n, b in task.named_buffers() if "running" in n}
    assert statistics
    task.model(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(b, statistics[n]) for n, b in task.named_buffers() if "running" in n)
    assert task.model.get_classifier().training
    assert any(m.training for n, m in task.named_modules() if "lora" in n)


def test_lora_starts_at_the_model_trains_little_and_merges(train: Callable[..., Run]) -> None:
    pytest.importorskip("peft")
    plain, adapted = tiny_task().eval(), tiny_task(finetune="lora", lora_rank=2).eval()
    data = batch()
    torch.testing.assert_close(plain(data.images), adapted(data.images))
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert {"model.head.weight", "model.head.bias"} < trained
    assert all("lora_" in n for n in trained - {"model.head.weight", "model.head.bias"})

    run = train(epochs=1, finetune="lora", lora_rank=2, lr=1e-2)
    task = run.task.eval()
    merged, _ = task.export_model()
    assert set(merged.state_dict()) == set(plain.model.state_dict())
    assert not torch.equal(merged.blocks[0].attn.qkv.weight, tiny_task().model.blocks[0].attn.qkv.weight)
    images = task.normalize(data.images)
    torch.testing.assert_close(merged.eval()(images), task.model(images), atol=1e-5, rtol=1e-5)
    loaded, _ = load_bundle(run.folder.path)
    torch.testing.assert_close(loaded(images), task.model(images), atol=1e-5, rtol=1e-5)


def test_lora_without_peft_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"needs the package peft; run: pip install"):
        tiny_task(finetune="lora")


# ---- weights -------------------------------------------------------------------------------------


def test_weights_may_be_a_run_folder_and_bring_their_backbone(learned: Run) -> None:
    data = batch()
    task = tiny_task(weights=str(learned.folder.path), backbone=None, image_size=None).eval()
    assert task.backbone_name == "vit_nano_patch4_32"
    model, _ = load_bundle(learned.folder.path)
    torch.testing.assert_close(task(data.images), model(task.normalize(data.images)))


def test_scoring_weights_without_a_fitting_head_is_refused(tmp_path: Path) -> None:
    torch.save(create_classifier("vit_nano_patch4_32", 7, image_size=16).state_dict(), tmp_path / "seven.pth")
    with pytest.warns(UserWarning, match="head"):
        task = tiny_task(weights=str(tmp_path / "seven.pth"))
    task.setup("fit")
    with pytest.raises(ValueError, match="no head for these 10 classes"):
        task.setup("validate")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backbone": None}, "model.backbone is not given"),
        ({"backbone": "vit_nano_patch4_33"}, "did you mean vit_nano_patch4_32"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be in"),
        ({"finetune": "some"}, "use full, head or lora"),
        ({"classes": ["a"]}, "1 class names do not fit num_classes=10"),
        ({"class_weights": "balanced"}, "needs class_counts"),
        ({"ema_decay": 1.0}, "ema_decay=1.0 must be in"),
        ({"lr": 0.0}, "must be above 0"),
        ({"warmup_epochs": -1.0}, "warmup_epochs=-1.0 must be at least 0"),
        ({"mixup": -0.1}, "mixup=-0.1 must be at least 0"),
    ],
)
def test_wrong_options_say_what_and_how(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tiny_task(**options)


def test_a_warm_up_longer_than_the_training_is_an_error(train: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match="a warm-up of 12 steps leaves nothing of the 12 steps"):
        train(warmup_epochs=2)


def test_base_lr_scales_with_the_images_per_step(train: Callable[..., Run]) -> None:
    run = train(epochs=1, base_lr=0.016, trainer={"accumulate_grad_batches": 2})
    assert run.trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.016 * 16 * 2 / 256)


# ---- evaluation ----------------------------------------------------------------------------------


def test_evaluation_is_exact_over_uneven_and_empty_batches() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(101, 7, generator=generator)
    labels = torch.randint(0, 7, (101,), generator=generator)
    images = torch.zeros(101, 3, 8, 8, dtype=torch.uint8)
    evaluation = ClassificationEvaluation(7)
    for rows in torch.arange(101).split([40, 0, 60, 1]):
        loss = torch.nn.functional.cross_entropy(logits[rows], labels[rows])
        evaluation.update(logits[rows], labels[rows], loss, images[rows], rows)
    values, results = evaluation.compute()
    torch.testing.assert_close(values["loss"], torch.nn.functional.cross_entropy(logits, labels))
    assert float(values["accuracy"]) == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    top5 = (logits.topk(5).indices == labels[:, None]).any(1)
    assert float(values["top5"]) == pytest.approx(float(top5.double().mean()))
    for true in range(7):
        for predicted in range(7):
            count = ((labels == true) & (logits.argmax(1) == predicted)).sum()
            assert results.matrix is not None
            assert results.matrix[true, predicted] == count
    probabilities = logits.softmax(1)
    wrong = [i for i in range(101) if logits[i].argmax() != labels[i]]
    expected = sorted(wrong, key=lambda i: -float(probabilities[i].max()))[:MISTAKES]
    assert [m.position for m in results.mistakes] == expected
    # and it starts afresh
    evaluation.update(logits[:1], logits[:1].argmax(1), torch.tensor(0.5), images[:1], torch.arange(1))
    values, results = evaluation.compute()
    assert float(values["accuracy"]) == 1.0
    assert results.mistakes == []


def test_mistakes_are_kept_small() -> None:
    evaluation = ClassificationEvaluation(3)
    images = torch.full((2, 4, 640, 320), 200, dtype=torch.uint8)
    evaluation.update(torch.eye(3)[:2] * 5, torch.tensor([2, 1]), torch.tensor(1.0), images, torch.arange(2))
    _, results = evaluation.compute()
    (mistake,) = results.mistakes
    assert mistake.image.shape == (160, 80, 3)
    assert (mistake.image == 200).all()
    assert (mistake.label, mistake.predicted) == (2, 0)


def test_very_many_classes_keep_counts_per_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionzoo.metrics.classification import class_scores

    labels = torch.tensor([0, 1, 2, 2, 3])
    logits = torch.eye(4)[torch.tensor([0, 2, 2, 1, 3])] * 9
    scores = []
    for limit in (10, 2):
        monkeypatch.setattr("visionzoo.tasks.classify_evaluation.MATRIX_LIMIT", limit)
        evaluation = ClassificationEvaluation(4)
        images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
        evaluation.update(logits, labels, torch.tensor(0.0), images, torch.arange(5))
        scores.append(class_scores(evaluation.compute()[1].counts))
    for full, small in zip(*scores, strict=True):
        torch.testing.assert_close(full, small, equal_nan=True)


def test_a_folder_of_transformers_starts_training_as_it_starts_a_backbone(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    name = "vit_tiny_patch16_224"
    with pytest.warns(UserWarning, match="the head of vit_tiny_patch16_224 was not loaded"):
        module = ClassifyTask(num_classes=3, backbone=name, weights=str(tmp_path))
    assert "150 of 150 tensors of the backbone (100.0%) loaded" in module.opening_line
    own = module.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in vz.create_backbone(name, weights=tmp_path).state_dict().items())
    with pytest.raises(ValueError, match=r"model\.backbone is not given"):
        ClassifyTask(num_classes=3, weights=str(tmp_path))
