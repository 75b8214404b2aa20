"""Memory that runs out in the middle of a step: the same step again in halves, with the same gradient."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from visionzoo.cli import train as cli
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.clip import ClipTask
from visionzoo.tasks.engine import checkpoint
from visionzoo.tasks.interface import LossPart
from visionzoo.tasks.mae import MaeTask
from visionzoo.tasks.segment import SegmentTask

DIGITS = ["--data.path=digits", "--data.train_limit=48", "--model.backbone=vit_nano_patch4_32", "--model.image_size=16"]
SHAPES = ["--data.path=shapes:24", "--data.shapes_size=32", "--model.backbone=vit_nano_patch4_32"]
DECODER = ["--model.decoder_dim=32", "--model.decoder_depth=1", "--model.decoder_heads=2"]
SMALL = ["--model.image_size=32", "--model.embedding_stride=4", "--model.decoder_dim=16", "--model.encoder=full"]
MIX = ["--model.mixup=0.4", "--model.cutmix=1.0", "--model.label_smoothing=0.1"]
TOWERS = ["--model.backbone=vit_nano_patch4_32", "--model.text=nano", "--model.context_length=16"]
WEIGHTED = ["--model.class_weights=balanced", "--model.label_smoothing=0.1"]
#: name -> (task, options)
RUNS: dict[str, tuple[type[VisionTask], list[str]]] = {
    "classify": (ClassifyTask, ["classify", "fit", *DIGITS, *WEIGHTED]),
    "mixed": (ClassifyTask, ["classify", "fit", *DIGITS, *MIX, "--model.class_weights=balanced"]),
    "mae": (MaeTask, ["mae", "fit", *DIGITS, *DECODER]),
    "simmim": (MaeTask, ["mae", "fit", *DIGITS, "--model.method=simmim", "--model.mask_patch_size=4"]),
    "segment": (SegmentTask, ["segment", "fit", *SHAPES, *SMALL, "--model.clicks=2", "--model.mask_rounds=2"]),
    "clip": (
        ClipTask,
        ["clip", "fit", "--data.path=shapes:60", *TOWERS, "--model.micro_batch=12"],
    ),
}  # fmt: skip
COMMON = ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0"]
COMMON += ["--data.num_workers=0", "--data.batch_size=12", "--trainer.max_steps=3"]
#: So small a learning rate that rounding, which Adam would blow up, does not reach the next step's gradient.
SLOW = ["--model.lr=1e-7"]


class Gradients(pl.Callback):
    """What each optimizer step is taken with."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        grads = [p.grad.flatten() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self.seen.append(torch.cat(grads).clone())


class Machine:
    """A machine whose memory holds so many images at a time; it counts how often there was too little."""

    def __init__(self, most: int, where: str = "forward", error: Callable[[], BaseException] | None = None) -> None:
        self.most, self.where, self.refused = most, where, 0
        self._armed: Any = None
        self.error = error or (lambda: torch.OutOfMemoryError("CUDA out of memory."))

    def install(self, monkeypatch: pytest.MonkeyPatch, task: type[VisionTask]) -> None:
        whole = task.loss_parts

        def loss_parts(module: Any, batch: Any, size: int | None) -> Iterator[LossPart]:
            for part in whole(module, batch, size):
                if part.size > self.most:
                    if self.where == "forward":
                        self._refuse()
                    some = list(module.parameters())
                    first = next(p for p in some if p.requires_grad)
                    # in the middle of the backward pass, with some gradients there already
                    if self._armed is not None:  # by an earlier part of this try
                        self._armed.remove()
                    self._armed = first.register_hook(lambda _: self._refuse())
                yield part

        monkeypatch.setattr(task, "loss_parts", loss_parts)

    def _refuse(self) -> None:
        self.refused += 1
        if self._armed is not None:
            self._armed.remove()
        raise self.error()


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tensor]]:
    monkeypatch.chdir(tmp_path)
    whole = cli.TrainCLI._callbacks

    def run(name: str, folder: str, *more: str, code: int = 0) -> list[Tensor]:
        found = Gradients()
        monkeypatch.setattr(cli.TrainCLI, "_callbacks", lambda self, bar: [found, *whole(self, bar)])
        assert cli.run([*RUNS[name][1], *COMMON, *SLOW, f"--run_dir={folder}", *more]) == code
        return found.seen

    return run


def rows(folder: str) -> list[dict[str, str]]:
    with (Path(folder) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same(one: list[Tensor], two: list[Tensor]) -> None:
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(a.abs().max()))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("classify", "forward"),
        ("classify", "backward"),
        ("mixed", "forward"),
        ("mae", "forward"),
        ("simmim", "backward"),
        ("segment", "forward"),
        *(pytest.param(name, "backward", marks=pytest.mark.slow) for name in ("mixed", "mae", "segment")),
        pytest.param("simmim", "forward", marks=pytest.mark.slow),
    ],
)
def test_halves_have_the_gradient_of_the_whole(
    name: str, where: str, train: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch, survived: Any
) -> None:
    plain = train(name, "plain")
    machine = Machine(4, where)
    machine.install(monkeypatch, RUNS[name][0])
    with pytest.warns(UserWarning, match="from here on 3 images at a time, accumulated to the same 12"):
        halves = train(name, "halves")
    assert machine.refused == 2  # 12, 6, and then three at a time to the end
    assert_same(plain, halves)
    assert [float(row["micro_batch"]) for row in rows("halves")] == [3.0] * 3
    for one, two in zip(rows("plain"), rows("halves"), strict=True):
        for key in (k for k in one if k.startswith("train/")):
            assert float(one[key]) == pytest.approx(float(two[key]), abs=1e-5), key
    survived(f"out of memory in the {where} pass: halved, with the gradient of the whole batch", 2)


def test_gradients_of_earlier_batches_survive(
    train: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second of two batches that are accumulated, once its backward pass has begun."""
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=2"]
    plain = train("classify", "plain", *more)
    count, whole, hooks = [0], ClassifyTask.loss_parts, list[Any]()

    def loss_parts(module: Any, batch: Any, size: int | None) -> Iterator[LossPart]:
        for part in whole(module, batch, size):
            count[0] += 1
            if count[0] == 2:
                first = next(p for p in module.parameters() if p.requires_grad)
                hooks.append(first.register_hook(lambda _: _run_out(hooks.pop())))
            yield part

    monkeypatch.setattr(ClassifyTask, "loss_parts", loss_parts)
    with pytest.warns(UserWarning, match="memory ran out at step 0: from here on 6"):
        assert_same(plain, train("classify", "halves", *more))


def _run_out(hook: Any) -> None:
    hook.remove()
    raise torch.OutOfMemoryError("x")


@pytest.mark.parametrize(
    "error", [MemoryError("no"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_every_kind_of_it_is_known(
    error: BaseException, train: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(8, error=lambda: error).install(monkeypatch, ClassifyTask)
    with pytest.warns(UserWarning, match="from here on 6 images"):
        train("classify", "run")


@pytest.mark.long
def test_a_resumed_run_goes_on_in_the_same_parts(
    train: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the random numbers of the one that was never stopped: dropout is drawn for each part."""
    more = ["--model.drop_rate=0.3", "--model.drop_path=0.2", "--save_every_n_steps=2"]
    machine = Machine(4)
    machine.install(monkeypatch, ClassifyTask)
    save = checkpoint.save_between_steps

    def save_and_copy(trainer: Any, task: Any) -> None:
        save(trainer, task)
        if trainer.global_step == 2:
            shutil.copytree("once", "twice")

    monkeypatch.setattr(checkpoint, "save_between_steps", save_and_copy)
    with pytest.warns(UserWarning, match="from here on 3"):
        once = train("classify", "once", *more)
    refused = machine.refused
    again = train("classify", "twice", "--resume=twice", *more)
    assert machine.refused == refused
    assert len(again) == 1
    assert torch.equal(once[-1], again[-1])


def test_running_statistics_see_the_step_once(train: Callable[..., list[Tensor]], monkeypatch: Any) -> None:
    """Those of the try that was broken off are put back."""
    seen: list[list[int]] = []

    more = ["--model.backbone=timm/resnet10t.c3_in1k", "--model.image_size=32", "--trainer.max_steps=1"]
    Machine(6).install(monkeypatch, ClassifyTask)

    def note(module: Any, *args: Any) -> None:
        seen.append([int(b) for n, b in module.named_buffers() if n.endswith("num_batches_tracked")])

    monkeypatch.setattr(ClassifyTask, "on_train_batch_end", note)
    with pytest.warns(UserWarning, match="from here on 6"):
        train("classify", "run", *more)
    assert set(seen[0]) == {2}  # one for each half, none for the whole


def test_one_image_too_many_is_an_error(
    train: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Machine(0).install(monkeypatch, ClassifyTask)
    with pytest.warns(UserWarning, match="from here on 1 images"):
        train("classify", "run", code=1)
    assert "one image at a time" in capsys.readouterr().err


def test_without_halving_the_run_stops_and_says_what_to_do(
    train: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for where in ("forward", "backward"):
        Machine(8, where).install(monkeypatch, ClassifyTask)
        train("classify", where, "--halve_on_oom=false", code=1)
        assert "--data.batch_size (auto" in capsys.readouterr().err


@pytest.mark.long
def test_a_contrastive_loss_is_not_taken_apart(
    train: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = ClipTask.encode
    refused = []

    def encode(module: Any, part: Any) -> Any:
        if len(part[0]) > 4:
            refused.append(len(part[0]))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(module, part)

    train("clip", "plain")
    monkeypatch.setattr(ClipTask, "encode", encode)
    train("clip", "stopped", "--model.micro_batch=0", code=1)
    assert "set --model.micro_batch" in capsys.readouterr().err
    refused.clear()
    with pytest.warns(UserWarning, match="from here on 3 images"):
        train("clip", "cached")
    assert refused == [12, 6]
    for one, two in zip(rows("plain"), rows("cached"), strict=True):
        assert float(one["train/loss"]) == pytest.approx(float(two["train/loss"]), abs=1e-5)
