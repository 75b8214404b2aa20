"""Real training processes that can be killed at a chosen moment.

A process that has everything imported forks one for each command, so that a run costs a second and not fifteen. The
child goes through ``visionzoo.cli.train.run`` as ``train.py`` does; a few tests start ``train.py`` itself.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_DIGITS = """--model.backbone=vit_nano_patch4_32 --model.image_size=16 --data.path=digits --data.batch_size=16
    --data.train_limit=96"""
_TASKS = {
    "classify": f"""{_DIGITS} --model.drop_path=0.2 --model.drop_rate=0.1 --model.mixup=0.4 --model.cutmix=1.0
        --model.ema_decay=0.9 --model.warmup_steps=4 --model.lr=1e-3""",
    "mae": f"{_DIGITS} --model.decoder_dim=32 --model.decoder_depth=1 --model.decoder_heads=2",
    "ssl": f"""{_DIGITS} --model.method=dino --model.hidden=32 --model.out=32 --model.momentum=0.9 --model.drop_path=0.1
        --model.patch_loss_weight=1 --data.small_views=1 --data.small_size=8 --model.watch_every_n_steps=2
        --model.watch_images=32 --model.on_collapse=warn""",
    "clip": """--data.path=shapes:64 --data.batch_size=16 --model.backbone=vit_nano_patch4_32 --model.text=nano
        --model.context_length=16""",
    "segment": """--data.path=shapes:8 --data.shapes_size=32 --data.batch_size=2 --model.backbone=vit_nano_patch4_32
        --model.image_size=32 --model.embedding_stride=4 --model.decoder_dim=16 --model.clicks=1 --model.mask_rounds=1
        --model.encoder=full""",
}
#: Options of a tiny run of each task; of ``classify``: six steps an epoch, and all that draws random numbers.
TINY = {task: options.split() for task, options in _TASKS.items()}
COMMON = [
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=1",
    "--data.eval_batch_size=64",
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a process on its own, and when."""

    step: int  #: optimizer steps done in the whole run; ``memory``: images it lasts for; ``leak``: bytes
    #: ``batch start``, ``gradient`` (before the step), ``batch end`` (before a save), ``saved`` (after it),
    #: ``memory``, ``leak`` (of every read), ``validation``, ``save`` (inside the next save), ``rename`` (that save is
    #: written and has no name yet), ``end``
    where: str
    signal: int = signal.SIGKILL
    rank: int = 0


@dataclass
class Rank:
    """One process of a run."""

    process: Any
    log: Path

    def wait(self, timeout: float = 120) -> int:
        """The exit code; minus the number of the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s: {self.log.read_text()[-2000:]}")
        return self.process.exitcode


@dataclass
class Launcher:
    """Starts training commands in ``folder``."""

    folder: Path
    started: int = 0
    ranks: list[Rank] = field(default_factory=list)

    def start(self, *args: str, fault: Fault | None = None, world_size: int = 1) -> list[Rank]:
        """``train.py ARGS`` in one process for each rank."""
        context, port, found = _forking(), _free_port(), []
        for rank in range(world_size):
            self.started += 1
            log = self.folder / f"log-{self.started}.txt"
            job = (list(args), str(self.folder), str(log), fault, rank, world_size, port)
            process = context.Process(target=_child, args=job)
            process.start()
            found.append(Rank(process, log))
        self.ranks += found
        return found

    def run(self, *args: str, fault: Fault | None = None, world_size: int = 1) -> list[int]:
        """Exit codes of all ranks. A rank whose peer was killed is killed too, as a launcher would."""
        ranks = self.start(*args, fault=fault, world_size=world_size)
        if fault is not None and world_size > 1 and fault.signal == signal.SIGKILL:
            ranks[fault.rank].wait()
            for rank in ranks:
                rank.process.kill()
        return [rank.wait() for rank in ranks]

    def command(self, *args: str) -> subprocess.Popen[bytes]:
        """``python train.py ARGS`` as people type it."""
        log = self.folder / "log-command.txt"
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *args],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": path},
                stdout=file,
                stderr=file,
            )

    def processes(self) -> list[int]:
        """Processes that are alive in the folder: runs and their workers."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "cwd").resolve() == self.folder.resolve():
                    found.append(int(entry.name))
        return found

    def wait_for(self, name: str, process: subprocess.Popen[bytes], timeout: float = 200) -> None:
        """Wait until a file is there."""
        deadline = time.monotonic() + timeout
        while not (self.folder / name).exists():
            assert process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.002)

    @staticmethod
    def send(pid: int, number: int) -> None:
        """Send a signal to a process that may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def stop(self) -> None:
        """End every process of this test, workers that lost their run included."""
        for pid in self.processes():
            self.send(pid, signal.SIGKILL)
        for rank in self.ranks:
            rank.process.join(10)

    def output(self) -> str:
        """The end of what all processes printed."""
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(self.folder.glob("log-*.txt")))


def seen(run: Path) -> dict[tuple[str, str, str], str]:
    """By rank, epoch and batch: which samples, and a hash of their views. Batches trained twice must agree."""
    found: dict[tuple[str, str, str], str] = {}
    for path in sorted(run.glob("seen-*.txt")):
        for line in path.read_text().splitlines():
            rank, epoch, batch, rest = line.split(" ", 3)
            assert found.setdefault((rank, epoch, batch), rest) == rest, line
    return found


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def _forking() -> Any:
    """The context whose processes are forked from one that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run_process_imports"])
    here = Path(__file__).parent
    before = os.environ.get("PYTHONPATH", "")
    # Python 3.11 does not hand its own sys.path on to the forking process.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1]), before])
    forkserver.ensure_running()
    os.environ["PYTHONPATH"] = before
    return context


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- in the child ------------------------------------------------------------------------------------------------


def _child(args: list[str], folder: str, log: str, fault: Fault | None, rank: int, world_size: int, port: int) -> None:
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # that of workers is the platform's, as anywhere
    if world_size > 1:  # what torchrun sets
        ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        more = {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {k: str(v) for k, v in (ours | more).items()}
    import run_process_faults
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from visionzoo.cli import train

    rank_zero_only.rank = rank  # read from the environment when Lightning was imported, which is long ago here
    run_process_faults.install(fault, rank)
    code = train.run(args)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Lightning's and torch's own clean-up at exit is that of the parent


def view_hash(tensor: Any) -> str:
    return hashlib.blake2b(tensor.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
