"""The training step: nothing waits between two logged steps, and a conversation takes the memory of one round."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from tiny_run import Run, take
from torch import Tensor
from waits import Waits

from visionzoo.cli import train as cli
from visionzoo.tasks.classify import ClassifyTask
from visionzoo.tasks.engine.flags import Flags
from visionzoo.tasks.optim import skip_on
from visionzoo.tasks.segment import SegmentTask
from visionzoo.types import SegmentBatch

SHAPES = ["--data.path=shapes:96", "--data.num_workers=0", "--data.batch_size=8"]
VIT = "--model.backbone=vit_nano_patch4_32"
TOWERS = [VIT, "--model.text=nano", "--model.context_length=16"]
SMALL = [
    VIT,
    "--data.shapes_size=32",
    "--model.image_size=32",
    "--model.embedding_stride=4",
    "--model.decoder_dim=16",
    "--model.clicks=2",
]
RUNS = {
    "classify": ["classify", "fit", *SHAPES, VIT, "--model.cutmix=1", "--model.drop_path=0.1"],
    "mae": ["mae", "fit", *SHAPES, VIT, "--model.decoder_dim=32", "--model.decoder_depth=1"],
    "simmim": ["mae", "fit", *SHAPES, VIT, "--model.method=simmim", "--model.mask_patch_size=4"],
    "moco": ["ssl", "fit", *SHAPES, VIT, "--model.method=moco", "--model.hidden=32", "--model.queue=64"],
    "ibot": ["ssl", "fit", *SHAPES, VIT, "--model.hidden=32", "--model.out=32", "--model.patch_loss_weight=1"],
    "clip": ["clip", "fit", *SHAPES, *TOWERS],
    "clip, cached": ["clip", "fit", *SHAPES, *TOWERS, "--model.micro_batch=4"],
    "segment": ["segment", "fit", *SHAPES, *SMALL, "--model.encoder=full"],
    "segment, frozen": ["segment", "fit", *SHAPES, *SMALL, "--model.embedding_cache=off"],
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_nothing_waits_for_the_device_between_two_logged_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the progress bar on, with the moving average, clipping and the guard."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdout", Terminal())
    for where in ("model", "prompt_encoder"):  # as on a GPU
        monkeypatch.setattr(f"visionzoo.models.sam.{where}.may_look", lambda x: not torch.is_grad_enabled())
    between, logged = Counter[str](), Counter[str]()
    bars: list[str] = []
    whole = _TrainingEpochLoop.advance

    def advance(loop: Any, fetcher: Any) -> None:
        step = loop.global_step + 1
        bars.extend(type(c).__name__ for c in loop.trainer.callbacks if "ProgressBar" in type(c).__name__)
        with Waits(logged if step in (1, 4, 8, 9) else between):
            whole(loop, fetcher)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", advance)
    more = ["--trainer.accelerator=cpu", "--trainer.max_steps=9", "--trainer.log_every_n_steps=4", "--run_dir=run"]
    more += ["--trainer.limit_val_batches=0", "--trainer.gradient_clip_val=1"]
    more += [] if name == "ibot" else ["--model.ema_decay=0.9"]  # its teacher is an average
    assert cli.run([*RUNS[name], *more]) == 0
    assert not between, "\n".join(f"{count} x {place}" for place, count in between.items())
    assert any("_local_scalar_dense" in place for place in logged)  # the loggers read, so the count counts
    assert set(bars) == {"ProgressBar"}


def test_what_is_left_to_lightning_is_what_is_done_at_once(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = train("here", weight_decay=0.3)
    monkeypatch.setattr("visionzoo.tasks.step.can_repeat", lambda task: False)
    there = train("there", weight_decay=0.3)
    for name, tensor in here.weights().items():
        assert torch.equal(tensor, there.weights()[name]), name
    assert here.losses == there.losses


def test_hooks_are_called_once_a_step_with_whole_gradients(train: Callable[..., Run]) -> None:
    class Watch(pl.Callback):
        calls: Counter[str] = Counter()

        def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
            self.calls["before"] += 1

        def on_after_backward(self, trainer: Any, module: Any) -> None:
            self.calls["after"] += all(p.grad is not None for p in module.parameters() if p.requires_grad)

    train(epochs=1, callbacks=[Watch()])
    assert Watch.calls == {"before": 6, "after": 6}


def batch(images: int) -> SegmentBatch:
    masks = torch.zeros(2 * images, 32, 32, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[i : i + 12, 5 : 5 + 12 + i] = True
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    index = torch.arange(2 * images) // 2
    size, none = torch.tensor([[32, 32]] * images), torch.zeros(images, 3, dtype=torch.int64)
    names, valid = ("",) * len(masks), torch.ones(images, 32, 32, dtype=torch.bool)
    return SegmentBatch(pixels, masks, index, names, valid, size, none, torch.arange(images))


def segmenter(clicks: int, **options: Any) -> SegmentTask:
    torch.manual_seed(0)
    small = {"backbone": "vit_nano_patch4_32", "image_size": 32, "embedding_stride": 4, "decoder_dim": 32}
    return SegmentTask(**{**small, "encoder": "full", "mask_rounds": 0, "clicks": clicks, **options}).train()


class Held:
    """Bytes that autograd holds for backward passes, and their peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def __enter__(self) -> Held:
        held = self

        class Saved:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                held.now += self.size
                held.peak = max(held.peak, held.now)

            def __del__(self) -> None:
                held.now -= self.size

        self.hooks = torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)


def test_a_conversation_takes_the_memory_of_one_round() -> None:
    some, peaks = batch(4), []
    for clicks in (1, 10):  # of which the first prompt's round is one more
        with Held() as held:
            take(segmenter(clicks), some)
        peaks.append(held.peak)
    assert peaks[1] < 1.3 * peaks[0]


def test_round_by_round_is_the_gradient_of_all_rounds() -> None:
    """Of the encoder too, whose backward pass comes once, after them."""
    some, found = batch(3), []
    for size in (None, 2):
        module = segmenter(3)
        torch.manual_seed(1)
        take(module, some, size)
        found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    module = segmenter(3)
    torch.manual_seed(1)
    draws = module.conversation(some)
    embeddings = module.embed(some.images)
    torch.stack([loss for loss, _ in module.round_losses(draws, embeddings)]).sum().backward()
    whole = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert any(name.startswith("model.image_encoder") for name in whole)
    for parts in found:
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            assert gradient is not None
            assert float((gradient - parts[name]).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("flag", [0.0, 1.0])
def test_a_fused_optimizer_leaves_a_step_out_by_itself(flag: float) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for number, skip in enumerate([0.0, flag, 0.0]):
        weight.grad = torch.full((3,), float("nan") if skip else 1.0 + number)
        assert skip_on(optimizer, torch.tensor(skip))
        optimizer.step()
    twin = torch.nn.Parameter(torch.ones(3))
    plain = torch.optim.AdamW([twin], lr=0.1, fused=True)
    for number, skip in enumerate([0.0, flag, 0.0]):
        twin.grad = torch.full((3,), 1.0 + number)
        if not skip:
            plain.step()
    assert torch.equal(weight, twin)
    for ours, theirs in zip(optimizer.state[weight].values(), plain.state[twin].values(), strict=True):
        assert torch.equal(ours, theirs)
    assert not skip_on(torch.optim.AdamW([weight], foreach=True), torch.tensor(0.0))
    assert not skip_on(torch.optim.SGD([weight], lr=0.1), torch.tensor(0.0))


def test_flags_are_read_once_and_in_order() -> None:
    flags, trainer = Flags(), pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert float(flags.exchange(trainer, torch.tensor([0.0, 1.0]))) == 1
    flags.stop = True
    assert float(flags.exchange(trainer, torch.tensor([0.0, 0.0]))) == 0
    first, second = flags.read()
    assert (first.loss, first.gradient, first.skipped, first.stop) == (False, True, True, False)
    assert (second.skipped, second.stop) == (False, True)
    assert flags.read() == []
    assert flags.all_stop
    flags.start()
    assert not flags.stop
    assert not flags.all_stop


@pytest.mark.parametrize(
    ("last", "text"),
    [((True, True), "a part after its last one"), ((False, False), "without a part whose last is true")],
)
@pytest.mark.parametrize("repeats", [True, False])
def test_parts_of_ones_own_that_do_not_end_are_refused(
    last: tuple[bool, ...], text: str, repeats: bool, train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a part would be lost, or never exchanged, and nobody would see it."""
    whole = ClassifyTask.loss_parts

    def loss_parts(module: Any, batch: Any, size: int | None) -> Any:
        for flag in last:
            yield from (part._replace(last=flag) for part in whole(module, batch, size))

    monkeypatch.setattr(ClassifyTask, "loss_parts", loss_parts)
    monkeypatch.setattr("visionzoo.tasks.step.can_repeat", lambda task: repeats)
    with pytest.raises(ValueError, match=text):
        train(epochs=1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNS)
def test_torch_sees_no_wait_on_a_gpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    monkeypatch.chdir(tmp_path)
    whole = _TrainingEpochLoop.advance

    def advance(loop: Any, fetcher: Any) -> None:
        step = loop.global_step + 1
        torch.cuda.set_sync_debug_mode("error" if step > 4 and step % 4 else "default")
        try:
            whole(loop, fetcher)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(_TrainingEpochLoop, "advance", advance)
    more = ["--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.max_steps=9", "--run_dir=run"]
    more += ["--trainer.log_every_n_steps=4", "--trainer.limit_val_batches=0", "--model.ema_decay=0.9"]
    assert cli.run([*RUNS[name], *more]) == 0


def test_processes_ask_for_halves_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since gradients are then exchanged after the backward pass; one process takes them by itself."""
    from pytorch_lightning.strategies import DDPStrategy

    from visionzoo.tasks.out_of_memory import can_repeat

    module = segmenter(1)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer = trainer
    assert can_repeat(module)
    monkeypatch.setattr(type(trainer), "strategy", DDPStrategy())
    assert not can_repeat(module)
    module.halve_on_oom = True
    assert can_repeat(module)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_ranks_exchange_one_small_thing_a_step(name: str, tmp_path: Path) -> None:
    """Besides the gradients, which DDP exchanges during the backward pass, and what a contrastive loss compares."""
    script = Path(__file__).with_name("step_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    more = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=4"]
    more += ["--trainer.limit_val_batches=0", "--run_dir=run"]
    done = subprocess.run(
        [*launch, script, tmp_path, *RUNS[name], *more], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # both towers' features and which captions are equal, then the gradients of both
    features = {"all_gather": 3, "all_reduce": 2}
    for rank in range(2):
        steps = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for step in steps[1:3]:  # the first builds, the last ends the run
            for call, count in features.items() if name.startswith("clip") else ():
                step[call] -= count
            assert {call: count for call, count in step.items() if count} == {"all_reduce": 1}, step
