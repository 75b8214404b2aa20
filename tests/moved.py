"""Shows that a change moved nothing: short trainings of every task, whose ``metrics.csv`` must stay equal to the bit.

Run it with the code before the change and with the code after it, on the same machine and environment::

    python tests/moved.py run BEFORE      # in a checkout without the change
    python tests/moved.py run AFTER       # in one with it
    python tests/moved.py compare BEFORE AFTER

The code is that of the working directory. Five minutes on two cores. ``compare`` prints a line for each run and ends
with 1 where a number differs; a run whose numbers must move needs its reason in the commit.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHAPES = "--data.path=shapes:192 --data.num_workers=0 --trainer.max_epochs=2 --trainer.log_every_n_steps=1"
VIT = "--model.backbone=vit_nano_patch4_32"
CLIP = f"--model.backbone=swin_nano_patch2_window4_32 --model.text=nano --model.context_length=16 {SHAPES}"
#: Name of a run -> its command after ``train.py``. ``+resume`` is stopped after its first epoch, and goes on.
RUNS = {
    "digits": "classify fit --config=configs/classify/digits.yaml --trainer.max_epochs=4",
    "digits+resume": "classify fit --config=configs/classify/digits.yaml --trainer.max_epochs=4",
    "classify_parts": f"classify fit {VIT} {SHAPES} --model.cutmix=1 --model.drop_path=0.1 --data.batch_size=10 "
    "--trainer.accumulate_grad_batches=3 --model.class_weights=balanced",
    "classify_cnn": f"classify fit --model.backbone=timm/lcnet_050 --model.image_size=32 {SHAPES} "
    "--data.batch_size=16 --model.ema_decay=0.9",
    "mae": f"mae fit {VIT} {SHAPES} --data.batch_size=16 --trainer.gradient_clip_val=0.1",
    "simmim": f"mae fit --model.backbone=swin_nano_patch2_window4_32 {SHAPES} --data.batch_size=32 "
    "--model.mask_patch_size=8 --trainer.accumulate_grad_batches=2",
    "ssl": f"ssl fit {VIT} {SHAPES} --data.batch_size=16 --model.method=moco --model.hidden=32 --model.queue=64",
    "ssl_ibot": f"ssl fit {VIT} {SHAPES} --data.batch_size=16 --model.hidden=32 --model.out=32 "
    "--model.patch_loss_weight=1 --data.small_views=1 --data.small_size=16 --model.watch_every_n_steps=0",
    "clip": f"clip fit {CLIP} --data.batch_size=32 --trainer.gradient_clip_val=1",
    "clip_cached": f"clip fit {CLIP} --data.batch_size=32 --model.micro_batch=8",
    "segment": f"segment fit {VIT} --model.image_size=32 --model.embedding_stride=4 --model.decoder_dim=32 "
    f"--model.encoder=full {SHAPES} --data.batch_size=8 --trainer.max_epochs=1 --model.clicks=3 --model.ema_decay=0.9",
    "segment_frozen": f"segment fit {VIT} --model.image_size=32 --model.embedding_stride=4 --model.decoder_dim=32 "
    f"{SHAPES} --data.batch_size=8 --trainer.max_epochs=1 --model.embedding_cache=off --model.clicks=1",
}


def run(folder: Path, only: list[str]) -> None:
    """Train all runs into ``folder``; those that are there already are left."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    for name, command in RUNS.items():
        if (only and name not in only) or (folder / name / "model.safetensors").is_file():
            continue
        start = [sys.executable, "train.py", *command.split(), f"--run_dir={folder / name}"]
        print(f"{name}: {command}", flush=True)
        begun = time.monotonic()
        log = folder / f"{name}.log"
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            if name.endswith("+resume"):
                _stop_after_an_epoch(start, environment, log, file)
                start = [sys.executable, "train.py", *start[2:4], f"--resume={folder / name}"]
            done = subprocess.run(start, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}; see {log}")
        print(f"  {time.monotonic() - begun:.0f} s", flush=True)


def _stop_after_an_epoch(command: list[str], environment: dict[str, str], log: Path, file: object) -> None:
    process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)  # type: ignore[call-overload]
    while process.poll() is None and "epoch 1/" not in log.read_text():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    if process.wait() != 130:
        raise SystemExit(f"the run that was to be stopped ended with {process.returncode}; see {log}")


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's ``metrics.csv``, without empty cells and without the seconds that things took."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def differences(before: list[dict[str, str]], after: list[dict[str, str]]) -> list[str]:
    """``"step 3: train/loss 0.1 -> 0.2"`` for each value that differs, and for rows that one side alone has."""
    found = [f"{len(before)} rows -> {len(after)} rows"] if len(before) != len(after) else []
    for old, new in zip(before, after, strict=False):
        changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
        found += [f"step {old.get('step')}: {k} {old.get(k)} -> {new.get(k)}" for k in changed]
    return found


def compare(before: Path, after: Path) -> int:
    """Print what moved between two folders of runs. Returns the number of runs that did."""
    moved = 0
    for name in RUNS:
        if not (before / name).is_dir() or not (after / name).is_dir():
            print(f"{name:16} not on both sides")
            moved += 1
            continue
        old, new = rows(before / name), rows(after / name)
        found = differences(old, new)
        moved += bool(found)
        values = sum(map(len, old))
        print(f"{name:16} {values} values " + (f"MOVED in {len(found)}: {'; '.join(found[:3])}" if found else "equal"))
    return moved


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train into FOLDER")
    train.add_argument("folder", type=Path)
    train.add_argument("--only", nargs="*", default=[], choices=RUNS)
    against = commands.add_parser("compare", help="compare two such folders")
    against.add_argument("before", type=Path)
    against.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "run":
        run(args.folder.resolve(), args.only)
        return 0
    return 1 if compare(args.before, args.after) else 0


if __name__ == "__main__":
    sys.exit(main())
