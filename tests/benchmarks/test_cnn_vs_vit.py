"""CNN against ViT: the whole of it in miniature, and the parts that a mistake could hide in."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from tests.benchmarks.tiny import TINY, records, run


@pytest.mark.long
def test_a_whole_comparison_goes_on_and_notices_other_options(
    load: Any, here: list[tuple[str, str]], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, child = tmp_path / "out", load("comparison.child")
    work, broken = child.work, "vit_nano_patch4_32"

    def stopped_at_the_vit(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        if kind == "train" and spec["run"]["model"] == broken:
            raise KeyboardInterrupt
        return work(kind, spec)

    monkeypatch.setattr(child, "work", stopped_at_the_vit)
    assert run(load, out) == 130
    first = capsys.readouterr()
    assert first.out.startswith("6 training runs (2 models, 1 seeds), each of 6 steps of 8 images")
    assert "the same command goes on from here" in first.err
    assert [k for k, _ in here] == ["speed"] * 4 + ["train"] * 4

    monkeypatch.setattr(child, "work", work)
    here.clear()
    assert run(load, out) == 0
    assert [k for k, _ in here] == ["train"] * 3  # only what was left
    assert "3 of them kept from before" in capsys.readouterr().out

    results = json.loads((out / "results.json").read_text())
    trained = [r for r in results["rows"] if r["kind"] == "train"]
    assert len(trained) == 6
    whole = [r["result"] for r in trained if r["about"]["fraction"] == 1]
    assert all(set(r["corrupted"]) == {"jpeg", "contrast"} and len(r["corrupted"]["jpeg"]) == 5 for r in whole)
    assert all(r["images"] == 30 and r["corrupted_images"] == 12 and 0 <= r["ece"] <= 1 for r in whole)
    assert {r["result"]["train_images"] for r in trained} == {30, 60}
    assert {m["kind"] for m in results["models"]} == {"CNN", "ViT"}
    assert {"torch", "timm", "visionzoo"} <= set(results["machines"][0]["versions"])
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http://" not in page
    assert "https://" not in page
    assert str(tmp_path) not in page + (out / "results.json").read_text()
    assert "| lcnet_035 | CNN |" in (out / "results.md").read_text()

    assert run(load, out, "--budget.steps", "7") == 2
    assert "budget.steps was 6 and is 7" in capsys.readouterr().err


@pytest.mark.long
def test_a_model_without_memory_has_a_row_and_a_failure_is_tried_again(
    load: Any, here: list[tuple[str, str]], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, work = load("comparison.child"), load("comparison.child").work
    faults: dict[str, Exception] = {
        "timm/lcnet_035": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        "vit_nano_patch4_32": ValueError("it diverged"),
    }

    def faulty(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        if kind == "train":
            raise faults[spec["run"]["model"]]
        return work(kind, spec)

    monkeypatch.setattr(child, "work", faulty)
    out = tmp_path / "out"
    assert run(load, out, "--recipes", "equal", "--fractions", "1") == 1
    assert "| lcnet_035 | CNN | - | - | - |" in (out / "results.md").read_text()
    assert "equal recipe, seed 0, 100 % of the images: out of memory" in (out / "results.md").read_text()
    monkeypatch.setattr(child, "work", work)
    here.clear()
    assert run(load, out, "--recipes", "equal", "--fractions", "1") == 0
    assert [name for _, name in here] == ["train-vit_nano_patch4_32-equal-seed0-1"]
    assert "out of memory" in (out / "results.md").read_text()


@pytest.mark.long
def test_a_piece_runs_in_a_process_of_its_own_and_its_failure_is_told(load: Any, tmp_path: Path) -> None:
    pieces = load("comparison.pieces")
    store = pieces.Store(tmp_path, {}, "cpu", 1)
    spec = {"job": "inference", "model": "no_such_model", "image_size": 16, "num_classes": 2, "batch": 1, "rounds": 1}
    piece = pieces.Piece("speed", "x", {}, {**spec, "precision": "fp32", "channels_last": False, "device": "cpu"})
    record = store.run(piece)
    assert record["status"] == "failed"
    assert record["why"].startswith("error: unknown backbone 'no_such_model'")
    assert store.finished(piece) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--models", "resnt50"), "did you mean resnet50"),
        (("--corruptions", "jpg"), "there is no corruption 'jpg'; did you mean jpeg?"),
        (("--fractions", "0.05"), "leaves 3 of 60 training images, fewer than the 6 classes"),
        (("--fractions", "10"), "fraction 10 must be above 0 and at most 1"),
        (("--budget.minutes", "1"), "give one of budget.steps and budget.minutes"),
        (("--budget.stps", "1"), "did you mean --budget.steps?"),
        (("--models", "vit_small_patch16_224", "--image_size", "8"), "cannot be built for 8 pixels"),
        (("--recipes", "best"), "must be equal, published or both"),
    ],
)
def test_bad_input_is_said_before_anything_runs(
    load: Any, here: list[tuple[str, str]], tmp_path: Path, capsys: Any, more: tuple[str, ...], message: str
) -> None:
    assert run(load, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert here == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 0, "out of memory"),
        (ValueError("no"), 1, "failed"),
    ],
)
def test_a_trial_that_fails_is_told(
    error: Exception, code: int, said: str, load: Any, here: list[tuple[str, str]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    child, work = load("comparison.child"), load("comparison.child").work

    def faulty(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        if kind == "pace":
            raise error
        return work(kind, spec)

    monkeypatch.setattr(child, "work", faulty)
    args = [a if a != "6" else "null" for a in TINY]
    args += ["--out", str(tmp_path), "--budget.minutes", "0.5", "--models", "vit_nano_patch4_32"]
    assert load("cnn_vs_vit").main([*args, "--recipes", "equal", "--fractions", "1"]) == code
    about = "vit_nano_patch4_32, equal recipe, seed 0, 100 % of the images"
    assert f"{about}: {said}" in (tmp_path / "results.md").read_text()
    assert [kind for kind, _ in here] == ["speed", "speed", "pace"]


def test_minutes_become_steps_by_a_trial(load: Any, here: list[tuple[str, str]], tmp_path: Path) -> None:
    options = load("comparison.options")
    args = [a for a in TINY if a not in ("--budget.steps", "6")]
    args += ["--out", str(tmp_path), "--budget.minutes", "0.5", "--models", "vit_nano_patch4_32"]
    comparison = load("comparison.runner").Comparison(options.check(options.parse(args)))
    steps = comparison.steps(comparison.entries[0], "equal", 1.0)
    record = json.loads(next((tmp_path / "pieces").glob("pace-*.json")).read_text())
    assert steps == int(30 / record["result"]["seconds_per_step"])
    assert comparison.steps(comparison.entries[0], "equal", 1.0) == steps
    assert len(here) == 1  # the trial is kept, so a resumed comparison has the same budget


def test_corruptions_are_the_same_each_time_and_grow(load: Any) -> None:
    from visionzoo.data.sources.shapes import ShapesSource

    module = load("comparison.corruptions")
    source = ShapesSource(8, size=48)
    images = [np.array(source.read(i)) for i in range(8)]
    for name in module.CORRUPTIONS:
        distances = []
        for severity in module.SEVERITIES:
            one, other = (module.Corrupter(name, severity, 48) for _ in range(2))
            first = [one(image, i) for i, image in enumerate(images)]
            again = [other(image, i) for i, image in reversed(list(enumerate(images)))][::-1]
            assert all(
                (a == b).all() and a.dtype == np.uint8 and a.shape == (48, 48, 3)
                for a, b in zip(first, again, strict=True)
            )
            distances.append(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(first, images, strict=True)]))
        assert distances[0] > 0, name
        assert all(a < b for a, b in pairwise(distances)), (name, distances)


def test_random_corruptions_differ_between_images(load: Any) -> None:
    corrupt = load("comparison.corruptions").Corrupter("gaussian_noise", 3, 32)
    grey = np.full((32, 32, 3), 128, np.uint8)
    assert (corrupt(grey, 0) != corrupt(grey, 1)).any()


def test_calibration_error_is_its_definition(load: Any) -> None:
    evaluation = load("comparison.evaluation")
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(400, 5, generator=generator)).softmax(1)
    labels = torch.randint(5, (400,), generator=generator)
    expected = 0.0
    for b in range(15):
        inside = [i for i in range(400) if b / 15 < float(probabilities[i].max()) <= (b + 1) / 15]
        if inside:
            right = sum(int(probabilities[i].argmax()) == int(labels[i]) for i in inside) / len(inside)
            sure = sum(float(probabilities[i].max()) for i in inside) / len(inside)
            expected += len(inside) / 400 * abs(right - sure)
    assert evaluation.calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_pareto_front(load: Any) -> None:
    front = load("comparison.pareto").pareto_front
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.0, 0.7), (4.0, 0.9), (5.0, 0.2)]
    assert front(points) == [1, 3, 0]

    def beaten(i: int) -> bool:
        (c, v) = points[i]
        return any(a <= c and b >= v and (a, b) != (c, v) for a, b in points)

    assert sorted(front(points)) == [i for i in range(len(points)) if not beaten(i)]


def test_recipes_scale_with_the_batch(load: Any) -> None:
    recipes = load("comparison.recipes")
    tricks, deit = recipes.PUBLISHED["bag of tricks"], recipes.PUBLISHED["deit"]
    assert tricks.scaled_lr(64) == pytest.approx(0.025)  # SGD: linear
    assert deit.scaled_lr(256) == pytest.approx(5e-4)  # AdamW: the square root
    assert recipes.Recipe(lr=2e-3).scaled_lr(8) == 2e-3
    assert recipes.Recipe(warmup=0.5).warmup_steps(1) == 0
    names = {"timm/resnet50": "CNN", "timm/convnext_tiny": "CNN", "swin_tiny_patch4_window7_224": "ViT"}
    names |= {"vit_small_patch16_224": "ViT", "deit3_small_patch16_224": "ViT", "timm/mobilenetv3_small_050": "CNN"}
    assert [recipes.published(n, k) for n, k in names.items()] == [
        "resnet strikes back A3", "convnext", "swin", "deit", "deit III", "bag of tricks",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "recipe"),
    [
        ("mixer_s32_224", "MLP", "deit"),  # neither attention nor a convolution that overlaps
        ("resmlp_12_224", "MLP", "deit"),
        ("skresnet18", "CNN", "resnet strikes back A3"),  # whose attention weighs channels
        ("resnest14d", "CNN", "resnet strikes back A3"),
        ("nf_resnet26", "CNN", "resnet strikes back A3"),
        ("efficientvit_b0", "hybrid", "deit"),
        ("botnet26t_256", "hybrid", "deit"),
    ],
)
def test_a_family_is_known_by_its_parts(name: str, kind: str, recipe: str, load: Any) -> None:
    models, recipes = load("comparison.models"), load("comparison.recipes")
    entry = models.describe(models.resolve(name), 224, 10)
    assert (entry.kind, recipes.published(entry.name, entry.kind)) == (kind, recipe)


def test_every_seed_answers_the_same_images_where_nobody_has_split_them(load: Any, tmp_path: Path) -> None:
    """Trainings are compared image by image."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    open_data = load("comparison.training").open_data
    zero, one = (open_data(str(tmp_path), None, seed=seed, train_limit=0.5) for seed in (0, 1))
    held, trained = ([[s.sample_id(i) for i in range(len(s))] for s in sources] for sources in (
        (zero.val_source, one.val_source), (zero.train_source, one.train_source)
    ))  # fmt: skip
    assert held[0] == held[1]
    assert trained[0] != trained[1]
    assert len(trained[0]) == len(trained[1]) == 8
    assert not set(held[0]) & {*trained[0], *trained[1]}
    assert (zero.seed, one.seed) == (0, 1)


def test_the_networks_of_the_pilot_cost_the_same_and_are_of_five_families(load: Any) -> None:
    models, recipes = load("comparison.models"), load("comparison.recipes")
    names = ("resnet_pilot", "convnext_pilot", "vit_pilot", "swin_pilot", "cct_pilot")
    entries = [models.describe(models.resolve(name), 32, 10) for name in names]
    assert [e.kind for e in entries] == ["CNN", "CNN", "ViT", "ViT", "hybrid"]
    costs = [e.gmacs for e in entries]
    assert max(costs) < 1.2 * min(costs)
    assert max(costs) == pytest.approx(0.0107, rel=0.1)
    used = [recipes.published(e.name, e.kind) for e in entries]
    assert used == ["resnet on CIFAR", "convnext", "deit", "swin", "compact transformer"]
    cct = recipes.PUBLISHED["compact transformer"]  # its released configuration, value for value
    assert (cct.lr, cct.batch, cct.weight_decay, cct.warmup) == (55e-5, 128, 6e-2, 10 / 300)
    assert (cct.mixup, cct.cutmix, cct.erasing, cct.label_smoothing, cct.crop_scale) == (0.8, 1.0, 0.0, 0.1, (0.8, 1.0))
    assert (cct.policy, cct.magnitude) == ("randaugment", 9.0)


def test_the_hybrid_resamples_its_positions_and_takes_gradients(load: Any) -> None:
    load("comparison.small")
    from visionzoo.models.classifier import create_classifier

    model = create_classifier("timm/cct_pilot", 3, image_size=32, drop_path=0.1)
    for size in (32, 48):
        model(torch.randn(2, 3, size, size)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.long
def test_smaller_shares_have_fewer_steps_and_a_frozen_backbone_has_a_row(
    load: Any, here: list[tuple[str, str]], tmp_path: Path, capsys: Any
) -> None:
    more = ["--models", "lcnet_035", "--recipes", "equal", "--corruptions", "none", "--budget.steps", "10"]
    more += ["--budget.share_exponent", "0.5", "--probe.model", "vit_nano_patch4_32", "--probe.fractions", "0.5"]
    assert run(load, tmp_path, *more) == 2
    assert "probe.model=vit_nano_patch4_32 needs weights" in capsys.readouterr().err
    assert here == []
    more += ["--probe.weights", "random"]
    assert run(load, tmp_path, *more) == 0
    steps = {r["about"]["fraction"]: r["result"]["steps"] for r in records(tmp_path, "train")}
    assert steps == {1: 10, 0.5: 7}
    (probed,) = records(tmp_path, "probe")
    assert probed["result"]["train_images"] == 30
    assert "| vit_nano_patch4_32 | 50 % | 30 |" in (tmp_path / "results.md").read_text()
    answers = load("comparison.answers")
    for key in ("train-lcnet_035-equal-seed0-1", "probe-vit_nano_patch4_32-seed0-0.5"):
        found = answers.read_answers(tmp_path / "pieces" / f"{key}.parquet")
        record = json.loads((tmp_path / "pieces" / f"{key}.json").read_text())
        assert found.right.mean() == pytest.approx(record["result"]["accuracy"])
        assert len(set(found.position)) == record["result"]["images"]


def test_pairs_are_compared_over_seeds_and_networks_are_ranked(load: Any, tmp_path: Path) -> None:
    significance, models = load("comparison.significance"), load("comparison.models")
    answers, pieces = load("comparison.answers"), load("comparison.pieces")
    entries = [models.Entry(f"net{i}", "CNN", 1, 1.0) for i in range(3)]
    rng = np.random.default_rng(0)
    (tmp_path / "pieces").mkdir()
    rows = []
    for seed in range(3):
        for entry, chance in zip(entries, (0.9, 0.9, 0.7), strict=True):
            right = rng.random(500) < chance
            about = {"model": entry.name, "recipe": "equal", "seed": seed, "fraction": 1.0}
            result = {"accuracy": float(right.mean())}
            rows.append({"kind": "train", "status": "done", "about": about, "result": result})
            key = pieces.training_key(entry, "equal", seed, 1.0)
            label = np.zeros(500, int)
            found = answers.Answers(np.arange(500), label, (~right).astype(int), np.ones(500))
            found.write(tmp_path / "pieces" / f"{key}.parquet")
    same, first, second = significance.compare_pairs(significance.right_answers(tmp_path, entries, rows), entries)
    assert same.verdict.startswith("no difference seen; n = 3 would show")
    assert (first.verdict, second.verdict) == ("net0 is better", "net1 is better")
    assert first.adjusted >= first.difference.p
    here, ranking = significance.rank(entries, rows, "equal")
    assert ranking.blocks == 3
    assert ranking.ranks[2] == 3
    assert significance.rank(entries, rows, "published") is None
    plots = load("comparison.plots")
    assert plots.critical_difference(here, ranking, tmp_path / "cd.png").stat().st_size > 5000
    other = answers.Answers(np.arange(1, 501), label, label, np.ones(500))
    other.write(tmp_path / "pieces" / f"{key}.parquet")
    with pytest.raises(ValueError, match="other images than the rest"):
        significance.compare_pairs(significance.right_answers(tmp_path, entries, rows), entries)


def test_one_seed_is_never_called_a_difference(load: Any) -> None:
    from visionzoo.metrics.differences import paired_difference

    verdict = load("comparison.significance").verdict
    difference = paired_difference(np.ones(100, bool), np.zeros(100, bool))
    assert verdict("a", "b", difference, 0.0) == "one seed: what another training would give is not known"


@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
def test_other_optimizers_follow_the_schedule_and_mixed_labels_count(load: Any, optimizer: str) -> None:
    task = load("comparison.task").RecipeClassify(
        backbone="vit_nano_patch4_32", image_size=16, num_classes=3, optimizer=optimizer, loss="bce", lr=0.1,
        warmup_steps=2, weight_decay=0.3,
    )  # fmt: skip
    task.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    task._total_steps = lambda: 10
    made = task.configure_optimizers()
    assert {g["weight_decay"] for g in made["optimizer"].param_groups} == {0.0, 0.3}
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.05)  # the first of two warm-up steps
    if optimizer == "sgd":
        assert all(g["nesterov"] and g["momentum"] == 0.9 for g in made["optimizer"].param_groups)
    logits, mixed = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[0.7, 0.3, 0.0]])
    want = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 1.0, 0.0]]))
    assert task._loss(logits, mixed) == pytest.approx(float(want))


def test_every_model_sees_the_same_pixels(load: Any) -> None:
    task = load("comparison.task")
    specs = {
        task.RecipeClassify(backbone=n, image_size=32, num_classes=2, channels_last=True).export_model()[1].preprocess
        for n in ("timm/lcnet_035", "vit_nano_patch4_32")
    }
    assert specs == {task.equal_preprocess(32)}


def test_the_page_of_all_results_links_to_comparisons(load: Any, tmp_path: Path) -> None:
    report = load("report")
    assert report.comparisons(tmp_path) == []
    page = tmp_path / "cnn_vs_vit" / "pilot" / "results.md"
    page.parent.mkdir(parents=True)
    page.write_text("# CNN against ViT, a pilot\n\nmore\n")
    assert "- [CNN against ViT, a pilot](results/cnn_vs_vit/pilot/results.md), and `index.html` beside it" in (
        report.comparisons(tmp_path)
    )
