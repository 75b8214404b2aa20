"""Pretraining on views: learning, state, hand-over, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import Kill, Killed, fit_quietly
from tiny_ssl import CASES, fit_ssl, ssl_data, ssl_task
from torch import Tensor

import visionzoo as vz
from visionzoo.data.ssl import SslData
from visionzoo.models.bundle import load_bundle
from visionzoo.models.trunk import load_trunk
from visionzoo.runs import RunFolder
from visionzoo.runs.gallery import read_gallery
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.engine.sheets import Sheets
from visionzoo.tasks.mae import MaeTask
from visionzoo.tasks.optim import make_optimizer
from visionzoo.tasks.ssl import SslTask, momentum_at
from visionzoo.tasks.ssl_pictures import head_attention, nearest_places
from visionzoo.types import ImageBatch, ViewBatch

ONE = torch.ones(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, SslTask]]:
    """A finished run of every case, and its task."""
    root = tmp_path_factory.mktemp("runs")
    return {case: (root / case, fit_ssl(case, root / case, task={"drop_path": 0.1})[0]) for case in CASES}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_resume_is_bit_equal(case: str, runs: dict[str, tuple[Path, SslTask]], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "cut")
    with pytest.raises(Killed):
        fit_ssl(case, run.path, task={"drop_path": 0.1}, callbacks=[Kill(6)], every_n_steps=5)
    stored = torch.load(run.last, weights_only=True)
    assert stored["global_step"] == 5  # in the second epoch of four steps
    resumed, _ = fit_ssl(case, run.path, run.last, task={"drop_path": 0.1})
    whole = runs[case][1].state_dict()
    assert set(stored["state_dict"]) == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_teacher_of_a_checkpoint_has_taken_its_last_step(tmp_path: Path) -> None:
    """What follows a step comes before what is saved: else the teacher of every checkpoint was one step behind."""
    seen: dict[str, torch.Tensor] = {}

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                seen.update({k: v.clone() for k, v in module.state_dict().items()})

    with pytest.raises(Killed):
        fit_ssl("queue", tmp_path, callbacks=[Keep(), Kill(3)], every_n_steps=2)
    checkpoint = torch.load(RunFolder(tmp_path).last, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert int(seen["model.place"]) == 2 * 2 * 32
    for name, tensor in checkpoint["state_dict"].items():
        assert torch.equal(tensor, seen[name]), name


def test_the_queue_holds_the_keys_of_the_last_steps_and_may_be_long_or_short(tmp_path: Path) -> None:
    for size in (32, 256):
        module, _ = fit_ssl("queue", tmp_path / str(size), task={"queue": size}, max_steps=2)
        lengths = module.model.queue.norm(dim=1)  # type: ignore[union-attr,operator]
        torch.testing.assert_close(lengths, torch.ones(size))


def test_schedules() -> None:
    assert momentum_at(0, 100, 0.99) == pytest.approx(0.99)
    assert momentum_at(50, 100, 0.99) == pytest.approx(0.995)
    assert momentum_at(100, 100, 0.99) == 1
    module = ssl_task("dino")
    start = module.model.projector.prototypes.detach().clone()
    temperatures = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, task: Any, *args: Any) -> None:
            temperatures.append(task.model.teacher_temperature)
            moved = not torch.equal(task.model.projector.prototypes, start)
            assert moved == (trainer.global_step > 2), "half an epoch of four steps"

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        fit_quietly(module, ssl_data("dino"), Path(folder), callbacks=[Look()], limit_val_batches=0)
    assert temperatures[:6] == pytest.approx([0.04 + 0.03 * k / 6 for k in range(6)])
    assert temperatures[6:] == pytest.approx([0.07, 0.07])


def test_weight_decay_grows_along_half_a_cosine(tmp_path: Path) -> None:
    """As the reference's ``cosine_scheduler(0.04, 0.4)``, by the step; what is not decayed stays so."""
    seen: list[dict[str, float]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, task: Any, *args: Any) -> None:
            seen.append({g["name"]: g["weight_decay"] for g in trainer.optimizers[0].param_groups})

    quick: dict[str, Any] = {"callbacks": [Look()], "limit_val_batches": 0}
    fit_ssl("ibot", tmp_path, task={"weight_decay": 0.04, "weight_decay_end": 0.4}, **quick)
    expected = [0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [groups["decay"] for groups in seen] == pytest.approx(expected, rel=1e-12)
    assert {groups["no decay"] for groups in seen} == {0.0}
    ends = [ssl_task("dino", **o).weight_decay_end for o in ({}, {"weight_decay": 0.1}, {"weight_decay_end": 0.2})]
    assert ends == [0.4, 0.1, 0.2]
    assert ssl_task("moco").weight_decay_end == 0.1


def test_lars_adapts_weights_and_leaves_biases_and_norms_alone() -> None:
    """SimCLR's optimizer (arXiv 1708.03888): rate * 0.001 * |w| / (|g| + wd |w|), with timm's momentum of 0.9."""
    module = ssl_task("simclr", optimizer="lars", lr=0.3, weight_decay=0.01)
    optimizer = make_optimizer(module.optimizer_name, module.param_groups(0.3), lr=0.3, betas=module.betas)
    before = {n: p.detach().clone() for n, p in module.model.named_parameters()}
    torch.manual_seed(1)
    for parameter in module.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in module.model.named_parameters():
        gradient, weight = parameter.grad, before[name]
        assert gradient is not None
        step = 0.3 * gradient
        if parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed")):
            size, pull = weight.norm(), gradient.norm() + 0.01 * weight.norm()
            step = 0.3 * 0.001 * size / pull * (gradient + 0.01 * weight)
        torch.testing.assert_close(parameter.detach(), weight - step, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)


def test_what_is_handed_on_is_the_student_or_dinos_teacher(runs: dict[str, tuple[Path, SslTask]]) -> None:
    for case, (folder, task) in runs.items():
        stored = load_file(folder / "model.safetensors")
        assert not any(k.startswith("teacher.") for k in stored)
        part = "teacher.encoder." if task.method == "dino" else "encoder."
        state = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
        for name, tensor in load_trunk(folder).state_dict().items():
            assert torch.equal(tensor, stored[f"encoder.{name}"])
            assert torch.equal(tensor, state["model." + part + name]), f"{case}: {name}"
        again, config = load_bundle(folder)
        assert config.task == "ssl"
        assert config.architecture["method"] == task.method
        if again.teacher is not None:
            for name, tensor in again.teacher["encoder"].state_dict().items():
                assert torch.equal(tensor, again.encoder.state_dict()[name])


def test_any_task_starts_from_it_and_it_from_any(runs: dict[str, tuple[Path, SslTask]], tmp_path: Path) -> None:
    folder = str(runs["dino"][0])
    with pytest.warns(UserWarning, match="head"):
        classify = ClassifyTask(num_classes=10, weights=folder)
    assert classify.opening_line.startswith("54 of 54 tensors of the backbone (100.0%) loaded from ")
    again = SslTask(weights=folder, watch_every_n_steps=0)
    assert again.method == "dino"
    assert again.model.architecture["out"] == 32
    trained = load_bundle(folder)[0].state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in again.model.state_dict().items())
    other = SslTask(weights=folder, method="moco", hidden=32, out=16)
    assert other.opening_line.startswith("54 of 54 tensors of the backbone")
    for name, tensor in other.model.teacher["encoder"].state_dict().items():  # type: ignore[index]
        assert torch.equal(tensor, trained[f"encoder.{name}"])
    hiding = SslTask(weights=folder, patch_loss_weight=1.0)
    assert hiding.opening_line.startswith("54 of 54 tensors of the backbone"), "it has heads that the run has not"
    with pytest.raises(ValueError, match="task 'ssl', which has nothing to reconstruct with"):
        MaeTask(weights=folder)


def ibots(state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint of bytedance/ibot: a student with a mask token, and heads with a second last layer."""
    head = {"head.last_layer2.weight_v": torch.ones(2, 2), "head.mlp.0.weight": torch.ones(2, 2)}
    teacher = {f"backbone.{k}": v for k, v in state.items()} | head
    student = {f"module.{k}": torch.zeros_like(v) for k, v in teacher.items()}
    return {"student": student | {"module.backbone.masked_embed": torch.ones(1, 64)}, "teacher": teacher}


@pytest.mark.parametrize(
    ("method", "layout", "official"),
    [
        ("dino", "dino", lambda s: {"teacher": {f"backbone.{k}": v for k, v in s.items()} | {"head.mlp.0.bias": ONE}}),
        ("dino", "dino", ibots),
        ("dino", "dino", lambda s: s | {"masked_embed": torch.ones(1, 64)}),
        (
            "moco",
            "moco_v3",
            lambda s: {"state_dict": {f"module.base_encoder.{k}": v for k, v in s.items()} | {"predictor.0.bias": ONE}},
        ),
        ("simclr", "timm", dict),
    ],
    ids=["dino", "ibot", "ibot's student", "moco v3", "timm"],
)
def test_released_weights_come_in_and_go_out(method: str, layout: str, official: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = vz.create_backbone("vit_nano_patch4_32", image_size=8)
    for tensor in source.parameters():
        torch.nn.init.normal_(tensor)
    state = {k: v.clone() for k, v in source.state_dict().items()}
    torch.save(official(state), tmp_path / "released.pth")
    task = ssl_task("simclr", method=method, weights=str(tmp_path / "released.pth"))
    assert task.opening_line.startswith("54 of 54 tensors of the backbone (100.0%)")
    for part in [task.model.encoder, *([task.model.teacher["encoder"]] if task.model.teacher is not None else [])]:
        assert all(torch.equal(v, state[k]) for k, v in part.state_dict().items())
    written = vz.export_weights(task.model.evaluated, tmp_path / "out.safetensors", layout=layout)
    again = vz.create_backbone("vit_nano_patch4_32", image_size=8, weights=written)
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())


@pytest.mark.slow
def test_it_learns_without_labels(tmp_path: Path) -> None:
    module = ssl_task("simclr", image_size=16, hidden=None, out=128, lr=1e-3)
    gentle = {"blur": 0, "hflip": 0, "color_strength": 0.3}
    data = ssl_data("simclr", train_limit=None, batch_size=128, **gentle)
    untrained = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    before = untrained.validate(module, datamodule=data, verbose=False)[0]["val/knn_accuracy"]
    loop = fit_quietly(module, data, tmp_path, max_epochs=4)
    assert float(loop.callback_metrics["val/knn_accuracy"]) > before + 0.1


def test_without_labels_the_effective_rank_chooses(tmp_path: Path) -> None:
    module = ssl_task()
    loop = fit_quietly(module, ssl_data(use_labels=False), tmp_path, max_epochs=1)
    assert module.monitor == "val/effective_rank"
    assert "val/knn_accuracy" not in loop.callback_metrics
    assert RunFolder(tmp_path).best.is_file()


def test_scores_do_not_depend_on_the_batches() -> None:
    module, found = ssl_task().eval(), []
    for size in (50, 359):
        data = ssl_data(eval_batch_size=size)
        data.preprocess = module.preprocess
        for batch in data.val_dataloader():  # type: ignore[union-attr]
            module.update_evaluation(batch)
        found.append({k: float(v) for k, v in module.finish_evaluation().items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_loaders_of_others_are_taken() -> None:
    module = ssl_task()
    views = [torch.zeros(3, 3, 8, 8, dtype=torch.uint8)] * 2
    assert isinstance(module.take_batch(views), ViewBatch)
    batch = module.take_batch((views, torch.tensor([1, 2, 3])))
    assert batch.labels.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"several views of each image.*got Tensor"):
        module.take_batch(views[0])
    with pytest.raises(ValueError, match=r"the views are of \[3, 2\] images"):
        module.take_batch([views[0], views[0][:2]])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\): at 1 the teacher never moves"),
        ({"centre_momentum": 1.0}, r"centre_momentum=1.0 must be in \[0, 1\): at 1 the centre never moves"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"teacher_temperature": 0.0}, "teacher_temperature=0.0 must be above 0"),
        ({"method": "byol"}, "method='byol' is unknown; use simclr, moco or dino"),
        ({"method": "simclr", "queue": 64}, "queue=64 belongs to moco"),
        ({"method": "moco", "queue": -1}, "queue=-1 must be at least 0"),
        ({"backbone": None}, "model.backbone is not given"),
        ({"out": 0}, "out=0 must be at least 1"),
        ({"image_size": 3}, "3"),
        ({"on_collapse": "ignore"}, "on_collapse='ignore' is unknown; use stop, back or warn"),
        ({"ema_decay": 0.9}, "dino's teacher is a moving average already"),
        ({"weight_decay": 0.0, "weight_decay_end": 0.4}, "weight_decay=0 cannot grow to weight_decay_end=0.4"),
        ({"weight_decay_end": -0.4}, "weight_decay_end=-0.4 must be at least 0"),
        ({"patch_loss_weight": -1.0}, "patch_loss_weight=-1.0 must be at least 0"),
        ({"patch_loss_weight": 1.0, "method": "simclr"}, "patch_loss_weight=1.0 belongs to dino"),
        ({"patch_out": 64}, "patch_out=64 is the head of patches; give patch_loss_weight too"),
        (
            {"patch_loss_weight": 1.0, "backbone": "timm/resnet18", "image_size": 32},
            r"\(patch_loss_weight\) needs the capability 'masked_image'",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ssl_task("dino", **options)


@pytest.mark.parametrize(
    ("case", "task", "text"),
    [
        ("dino", {"method": "moco"}, "model.method was dino and is moco"),
        ("dino", {"patch_loss_weight": 1.0}, "model.patch_loss_weight was None and is 1.0"),
        ("ibot", {"patch_out": 8}, "model.patch_out was 16 and is 8"),
    ],
)
def test_a_run_goes_on_as_what_it_was(
    case: str, task: dict[str, Any], text: str, runs: dict[str, tuple[Path, SslTask]], tmp_path: Path
) -> None:
    data = ssl_data(case, **({"small_views": 0} if "method" in task else {}))
    with pytest.raises(ValueError, match=text):
        fit_quietly(ssl_task(case, **task), data, tmp_path / "run", RunFolder(runs[case][0]).last)


@pytest.mark.parametrize(
    ("case", "task", "data", "text"),
    [
        ("dino", {}, {"batch_size": 1}, "a step of 1 image has nothing to tell it from; give --data.batch_size 2"),
        ("simclr", {}, {"small_views": 2}, "data.small_views=2 is for dino; simclr compares two views of one size"),
        (
            "ibot",
            {},
            {"mask_probability": 0},
            r"mask_probability=0 hides none of the 16 patches \(4x4\) of a large view",
        ),
        ("ibot", {"image_size": 4}, {"small_views": 0}, r"hides none of the 1 patches"),
        ("ibot", {"image_size": 18}, {}, "18x18 pixels do not divide into patches of 4 pixels"),
        ("dino", {}, {"small_size": 3}, "data.small_size=3 is smaller than a patch of vit_nano_patch4_32, 4 pixels"),
        (
            "dino",
            {"backbone": "timm/vit_relpos_small_patch16_224", "image_size": None},
            {"small_size": 96},
            r"data.small_views\) needs the capability 'any_size'",
        ),
    ],
)
def test_bad_data(case: str, task: dict[str, Any], data: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        fit_quietly(ssl_task(case, **task), ssl_data(case, **data), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is written"


@pytest.mark.parametrize("case", CASES)
def test_one_view_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match="1 views of each image"):
        ssl_task(case).model.loss([torch.zeros(2, 3, 8, 8)])


def test_ibots_loss_is_logged_in_parts(tmp_path: Path) -> None:
    module, loop = fit_ssl("ibot", tmp_path, max_steps=2)
    logged = {k: float(v) for k, v in loop.callback_metrics.items()}
    assert module.model.mask_token.abs().sum() > 0
    both = logged["train/view_loss"] + logged["train/patch_loss"]
    assert logged["train/loss"] == pytest.approx(both, rel=1e-5)


def test_images_alone_are_no_training_batch() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="training needs several views of each image, got ImageBatch"):
        ssl_task().train_loss(ImageBatch(images, torch.zeros(2), torch.arange(2)))  # type: ignore[arg-type]


def test_predict_says_what_to_use_instead() -> None:
    with pytest.raises(ValueError, match="visionzoo embed"):
        ssl_task().on_predict_epoch_start()


@pytest.mark.long
def test_sheets_show_views_heads_and_neighbours(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    module, data = ssl_task("dino"), ssl_data("dino")
    fit_quietly(module, data, run.path, callbacks=[Sheets(2, 3)], max_steps=2, limit_val_batches=0)
    assert [p.name for p in run.sheets.glob("*.png")] == ["step_0000002.png"]
    gallery = read_gallery(run.sheets / "step_0000002.parquet")
    assert len(gallery.pictures) == 3
    assert gallery.about.note == "Each is: image, view, head, near"
    with Image.open(run.sheets / "step_0000002.png") as picture:
        assert picture.width > (1 + 4 + 2 + 3) * 128  # image, views, at least two heads, neighbours
    near = nearest_places(torch.eye(3), torch.eye(3), [0, 1, 2], [0, 1, 2])
    assert all(i not in row for i, row in enumerate(near)), "no image is its own neighbour"
    resnet = vz.create_backbone("timm/resnet18", image_size=32)
    assert head_attention(resnet, torch.zeros(1, 3, 32, 32)) == []


def test_early_stopping_looks_at_what_the_task_chooses_by(tmp_path: Path) -> None:
    """Without labels nothing is scored by neighbours, which only the first evaluation finds out."""
    from visionzoo.tasks.engine.stopping import Stopping

    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / f"{i}.png")
    task = ssl_task()
    data = SslData(str(tmp_path), batch_size=4, num_workers=0, val_fraction=0.5, recipe="simclr")
    stop = Stopping(task.monitor, task.monitor_mode, 1)
    trainer = fit_quietly(task, data, tmp_path / "run", callbacks=[stop], max_epochs=3)
    assert stop.monitor == task.monitor == "val/effective_rank"
    assert torch.isfinite(stop.best_score)
    assert trainer.global_step > 0


@pytest.mark.parametrize("layout", ["folders", "manifest"])
def test_training_images_need_no_labels_where_others_have_some(layout: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    rows = ["image,label,split"]
    for i in range(9):
        name = f"train/{i}.png" if i < 5 else f"val/{'ab'[i % 2]}/{i}.png"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / name)
        rows.append(f"{name},{'' if i < 5 else 'ab'[i % 2]},{name.split('/')[0]}")
    if layout == "manifest":
        (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    data = SslData(str(tmp_path / "list.csv" if layout == "manifest" else tmp_path), num_workers=0, recipe="simclr")
    assert (len(data.train_source or ()), len(data.val_source or ())) == (5, 4)
    assert set(data.val_source.targets.tolist()) == {0, 1}


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_is_held_out_is_never_trained_on(split: str, tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / split / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / split / "ab"[i % 2] / f"{i}.png")
    assert SslData(str(tmp_path), num_workers=0, recipe="simclr").train_source is None
    assert SslData(str(tmp_path / split), num_workers=0, recipe="simclr", val_fraction=1.0).train_source is None
