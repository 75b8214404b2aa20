"""The callbacks: averages, checkpoints, bad samples, interrupts, metrics file."""

from __future__ import annotations

import csv
import os
import pickle
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_run import STEPS, Run, tiny_task

from visionzoo.models.bundle import load_bundle
from visionzoo.tasks.engine.bad_samples import BadSamples
from visionzoo.tasks.engine.checkpoint import AtomicCheckpointIO, peek
from visionzoo.tasks.engine.ema import EMA, ema_decay_at
from visionzoo.tasks.engine.interrupt import Interrupt, RunInterruptedError
from visionzoo.tasks.engine.loggers import MetricsFile
from visionzoo.tasks.engine.progress import EpochLines, Throughput
from visionzoo.types import ImageBatch


class Record(pl.Callback):
    """The head's bias after every step, and during validation."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.trained.append(pl_module.model.head.bias.detach().clone())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.trained.append(pl_module.model.head.bias.detach().clone())

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.validated.append(pl_module.model.head.bias.detach().clone())


def test_ema_is_the_loop_and_every_user_sees_the_same_copy(train: Callable[..., Run]) -> None:
    record = Record()
    run = train(epochs=1, ema_decay=0.8, callbacks=[record])
    average = record.trained[0]
    for step, weights in enumerate(record.trained[1:], start=1):
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    checkpoint = torch.load(run.folder.last, weights_only=True)
    for seen in (
        record.validated[-1],
        run.task.model.head.bias,
        checkpoint["state_dict"]["model.head.bias"],
        load_bundle(run.folder.path)[0].head.bias,
    ):
        torch.testing.assert_close(seen, average)
    assert torch.equal(checkpoint["ema_trained"]["model.head.bias"], record.trained[-1])
    assert not torch.equal(record.trained[-1], average)


def test_ema_of_tied_weights_swaps_back() -> None:
    module = torch.nn.Module()
    module.a = torch.nn.Parameter(torch.ones(3))
    module.b = module.a
    ema = EMA(0.5)
    ema.average = {"a": torch.zeros(3)}
    with ema.averaged(module):
        assert module.b.tolist() == [0, 0, 0]
    assert module.b.tolist() == [1, 1, 1]
    assert ema.average["a"].tolist() == [0, 0, 0]


def test_ema_warms_up() -> None:
    assert ema_decay_at(0, 0.999) == 0.1
    assert ema_decay_at(10**6, 0.999) == 0.999
    with pytest.raises(ValueError, match=r"ema_decay=1.0 must be in \(0, 1\)"):
        EMA(1.0)


# ---- checkpoints ---------------------------------------------------------------------------------


def test_checkpoint_holds_only_tensors_and_plain_types(train: Callable[..., Run]) -> None:
    run = train(epochs=1)
    for path in (run.folder.last, run.folder.best):
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["schema_version"] == 1
        assert checkpoint["task"] == "classify"
        assert checkpoint["global_step"] == STEPS


@pytest.mark.slow
def test_compiled_and_plain_models_have_the_same_keys() -> None:
    assert list(tiny_task(compile=True).state_dict()) == list(tiny_task().state_dict())


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("how", ["write", "fsync"])
def test_full_disk_leaves_the_earlier_checkpoint_and_the_run_goes_on(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    class FillDisk(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.current_epoch == 1:
                target = "torch.save" if how == "write" else "os.fsync"
                monkeypatch.setattr(target, no_space)

    with pytest.warns(UserWarning, match="No space left on device.*the earlier one is untouched"):
        run = train(epochs=3, callbacks=[FillDisk()])
    monkeypatch.undo()
    assert run.trainer.global_step == 3 * STEPS
    assert torch.load(run.folder.last, weights_only=True)["global_step"] == STEPS
    assert not [p for p in run.folder.path.iterdir() if p.name.startswith(".")]


def test_a_file_size_limit_is_an_os_error_too(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"x": torch.zeros(10)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.warns(UserWarning, match="the earlier one is untouched"):
            io.save_checkpoint({"x": torch.zeros(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert io.load_checkpoint(path)["x"].shape == (10,)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/visionzoo-was-here",)


def test_hostile_cut_and_missing_checkpoints(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "x.ckpt"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        io.load_checkpoint(path)
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(ValueError, match="could run code"):
        io.load_checkpoint(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match=r"could run code|no whole checkpoint"):
        io.load_checkpoint(path)
    assert not Path("/tmp/visionzoo-was-here").exists()
    io.save_checkpoint({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="no whole checkpoint"):
        io.load_checkpoint(path)
    with pytest.raises(ValueError, match="weights_only=True"):
        io.load_checkpoint(path, weights_only=False)
    io.save_checkpoint({"x": torch.zeros(5000)}, path)
    whole = path.read_bytes()
    cut = [whole[:length] for length in (1, 3, 4, 100, 5000, len(whole) // 2, len(whole) - 1)]
    for content in (*cut, b"", b"hello", b"\x80\x02", bytes(1000)):
        path.write_bytes(content)
        for read in (io.load_checkpoint, peek):
            with pytest.raises(ValueError, match=r"is no whole checkpoint: \S|is damaged, or holds objects"):
                read(path)


# ---- Ctrl-C --------------------------------------------------------------------------------------


class PressCtrlC(pl.Callback):
    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_after_the_step_and_resumes_exactly(train: Callable[..., Run], capsys: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    whole = train("whole")
    message = f"(?s)saved at step {STEPS + 3}.*train.py classify fit --resume runs/x"
    with pytest.raises(RunInterruptedError, match=message):
        train("cut", callbacks=[PressCtrlC(STEPS + 2), Interrupt("train.py classify fit --resume runs/x")])
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping after this step" in capsys.readouterr().err
    resumed = train("cut", resume=whole.folder.path.parent / "cut" / "last.ckpt")
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name


def test_ctrl_c_at_the_last_batch_of_an_epoch_waits_for_its_end(train: Callable[..., Run]) -> None:
    with pytest.raises(RunInterruptedError, match=f"saved at step {STEPS}"):
        train(callbacks=[PressCtrlC(STEPS - 1), Interrupt()])


def test_a_second_ctrl_c_stops_at_once(train: Callable[..., Run], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        train(callbacks=[PressCtrlC(STEPS + 1, times=2), Interrupt("resume me")])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert "resume me" in capsys.readouterr().err


# ---- bad samples ---------------------------------------------------------------------------------


class Spoil(pl.Callback):
    """Say that one image of every batch, always the same two, could not be read."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: ImageBatch, batch_idx: int) -> None:
        trainer.spoiled = batch._replace(bad=((f"img{batch_idx % 2}.jpg", "truncated"),))


class TakeSpoiled(BadSamples):
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, trainer.spoiled, batch_idx)


def test_bad_samples_are_listed_once_with_their_reason(train: Callable[..., Run]) -> None:
    run = train(callbacks=[Spoil(), TakeSpoiled(0.05)])
    with run.folder.bad_samples.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["sample", "split", "reason"]
    assert rows[1:] == [[f"img{i}.jpg", "train", "truncated"] for i in range(2)]


def test_too_many_bad_samples_stop_the_run_with_the_list(train: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 of 96 training images could not be read.*max_bad_share=0.015"):
        train(callbacks=[Spoil(), TakeSpoiled(0.015)])
    assert "img1.jpg" in (tmp_path / "run" / "bad_samples.csv").read_text()


# ---- metrics file and speed ----------------------------------------------------------------------


def test_metrics_file_gains_columns_forgets_and_survives_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsFile(path)
    log.log_metrics({"epoch": 0, "train/loss": 0.5}, 0)
    log.log_metrics({"epoch": 0, "train/loss": 0.25}, 1)
    log.log_metrics({"epoch": 0, "val/loss": 0.75}, 1)
    assert path.read_text() == "epoch,step,train/loss,val/loss\n0,0,0.5,\n0,1,0.25,\n0,1,,0.75\n"
    with path.open("a") as file:
        file.write("0,")
    again = MetricsFile(path)
    again.forget_after(1)
    assert path.read_text() == "epoch,step,train/loss,val/loss\n0,0,0.5,\n"


def test_speed_leaves_pauses_out() -> None:
    speed = Throughput(memory=1.0)
    speed.start(10.0)
    speed.stop(11.0, 32)
    speed.start(100.0)  # a validation lies between
    speed.stop(101.0, 32)
    assert speed.rate == 32.0


def test_a_log_gets_a_line_inside_long_epochs(train: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    train(epochs=1, callbacks=[EpochLines(every_seconds=0.0)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == STEPS
    assert re.fullmatch(rf"step {STEPS - 1} of {STEPS}  loss \d\.\d+  [\d,]+ images/s  0:00:\d\d left", lines[-2])
